/** From the command line to an exit status. */
import { errorReport, toCtError } from '../core/errors.ts';
import { parseCommandLine } from './command.ts';
import { COMMANDS } from './commands.ts';
import { Output } from './output.ts';

/** 128 + SIGPIPE: what a program has whose reader went away. */
const EXIT_OUTPUT_CLOSED = 141;

/** Runs `ct ARGS…`; everything it printed has gone out when this resolves. Never rejects. */
export async function main(args: readonly string[]): Promise<number> {
  const output = new Output();
  let status: number;
  try {
    status = await dispatch(args, output);
  } catch (error) {
    status = await reportFailure(error, args, output);
  }
  await output.flush();
  return output.isBroken ? EXIT_OUTPUT_CLOSED : status;
}

async function dispatch(args: readonly string[], output: Output): Promise<number> {
  const invocation = parseCommandLine(COMMANDS, args);
  if (invocation.type === 'version') {
    const { VERSION } = await import('../core/version.ts');
    output.write('stdout', `ct ${VERSION}\n`);
    return 0;
  }
  if (invocation.type === 'help') {
    const { commandHelp, overviewHelp } = await import('./help.ts');
    const { command, group } = invocation;
    output.write('stdout', command ? commandHelp(command) : overviewHelp(COMMANDS, group));
    return 0;
  }
  const { run } = await invocation.command.load();
  return run(invocation.parsed, output);
}

async function reportFailure(failure: unknown, args: readonly string[], output: Output): Promise<number> {
  const error = toCtError(failure);
  if (asksForJson(args)) {
    output.write('stdout', `${JSON.stringify({ error: errorReport(error) })}\n`);
    return error.exitStatus;
  }
  const { formatError, formatInternalError, styleFor } = await import('./render/format.ts');
  const style = styleFor(output.isTty.stderr);
  const debug = process.env['CT_DEBUG'] === '1';
  output.write(
    'stderr',
    error.code === 'INTERNAL'
      ? formatInternalError(error, style, debug)
      : formatError(errorReport(error), style),
  );
  return error.exitStatus;
}

/** Also when the rest of the line does not parse: whoever asked for JSON reads JSON. */
function asksForJson(args: readonly string[]): boolean {
  const end = args.indexOf('--');
  return args.slice(0, end < 0 ? args.length : end).includes('--json');
}
