/** `--help` and docs/cli.md, both made from the command table. Pure. */
import type { CommandSpec, OptionSpec } from './command.ts';

const WIDTH = 88;

export function usageLine(command: CommandSpec): string {
  const { positionals, passthrough } = command;
  const words = [`ct ${command.name}`];
  if (command.options.length > 0) words.push('[OPTIONS]');
  if (positionals) {
    const { placeholder, max, min = 0 } = positionals;
    const word = `${placeholder}${max > 1 ? '…' : ''}`;
    words.push(min > 0 ? word : `[${word}]`);
  }
  return words.join(' ') + (passthrough ? ` [-- ${passthrough.placeholder}…]` : '');
}

function optionLabel(option: OptionSpec): string {
  const value = option.value === undefined ? '' : ` ${option.value}`;
  return `${option.short === undefined ? '    ' : `-${option.short}, `}--${option.name}${value}`;
}

function optionHelp(option: OptionSpec): string {
  return option.repeat === true ? `${option.help} (may be repeated)` : option.help;
}

export function commandHelp(command: CommandSpec): string {
  const { positionals, passthrough } = command;
  const rows: [string, string][] = [
    ...(positionals ? [[positionals.placeholder, positionals.help] as [string, string]] : []),
    ...(passthrough ? [[`-- ${passthrough.placeholder}`, passthrough.help] as [string, string]] : []),
    ...command.options.map((option): [string, string] => [optionLabel(option), optionHelp(option)]),
    ['-h, --help', 'show this help'],
  ];
  return [
    `Usage: ${usageLine(command)}`,
    ...command.description.map((paragraph) => wrap(paragraph, 0)),
    `Options:\n${twoColumns(rows)}`,
    `Examples:\n${twoColumns(command.examples.map(({ command: line, what }) => [line, what]))}`,
  ]
    .map((part) => `${part}\n`)
    .join('\n');
}

/** Of all commands, or of one group such as `image`. */
export function overviewHelp(commands: readonly CommandSpec[], group: string | undefined): string {
  const shown = group === undefined ? commands : commands.filter(({ name }) => name.startsWith(`${group} `));
  const rows = shown.map(({ name, summary }): [string, string] => [name, summary]);
  if (group === undefined)
    rows.push(['help COMMAND', 'show the help of a command'], ['--version', 'show the version']);
  return [
    `Usage: ct ${group === undefined ? 'COMMAND' : `${group} COMMAND`} [OPTIONS]`,
    ...(group === undefined ? ['Runs every CI job in a microVM of its own.'] : []),
    `Commands:\n${twoColumns(rows)}`,
    ...(group === undefined
      ? [
          'ct run build             the job `build` of ct.yml\nct run -- make test      one command in the current tree',
          'Exit status: 0 success, 1 a job failed, 2 bad input, 122 policy violation, 124 timeout,\n125 not the fault of the job, 130 cancelled; `ct run -- CMD`: that of the command.',
        ]
      : []),
  ]
    .map((part) => `${part}\n`)
    .join('\n');
}

/** docs/cli.md. */
export function cliReference(commands: readonly CommandSpec[]): string {
  const sections = commands.map((command) => {
    const { positionals, passthrough } = command;
    const rows = [
      ...(positionals ? [[`\`${positionals.placeholder}\``, positionals.help]] : []),
      ...(passthrough ? [[`\`-- ${passthrough.placeholder}\``, passthrough.help]] : []),
      ...command.options.map((option) => [`\`${optionLabel(option).trim()}\``, optionHelp(option)]),
    ];
    return [
      `## ct ${command.name}`,
      `    ${usageLine(command)}`,
      ...command.description.map((paragraph) => wrap(paragraph, 0, 110)),
      ...(rows.length === 0
        ? []
        : [['| option | meaning |', '|---|---|', ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n')]),
      [
        '```sh',
        ...command.examples.map(({ command: line, what }) => `${line.padEnd(48)} # ${what}`),
        '```',
      ].join('\n'),
    ].join('\n\n');
  });
  return [
    '# The command line\n\nGenerated from `src/cli/commands.ts` by `setup/generate-docs.ts`; do not edit.',
    STATUS_SECTION,
    ...sections,
    RAWJSON_SECTION,
  ]
    .join('\n\n')
    .concat('\n');
}

const STATUS_SECTION = `Exit status: 0 success; 1 a job failed; 2 bad input; 122 policy violation; 124 timeout; 125 infrastructure
failure; 130 cancelled. \`ct run -- CMD\` has the status of the command (128 + signal if it was killed). 141: what
read the output of ct went away, as for any program in a pipe. [errors.md](errors.md) lists every error.

Environment: \`CT_HOME\` is where images and the state of the host daemon are kept (\`$XDG_CACHE_HOME/ct\`, else
\`~/.cache/ct\`). \`NO_COLOR\` turns colours off. \`CT_DEBUG=1\` adds the stack to internal errors.`;

const RAWJSON_SECTION = `## Machine-readable output

\`ct run --json\` prints one document when all jobs have ended: \`version\` (1), \`exitStatus\`, \`durationMs\` and
\`jobs\`, each with \`name\`, \`image\`, \`outcome\` (\`success\`, \`failure\`, \`timeout\`, \`cancelled\`,
\`infrastructure\`, \`violation\`, \`skipped\`), \`exitCode\`, \`error\`, \`durationMs\`, \`vm\` (\`accelerator\`,
\`securityBoundary\`, \`vmm\`, \`source\`, \`claimMs\`, \`destroyMs\`), \`steps\`, \`artifacts\`, \`policy\` (\`digest\`, \`mode\`,
\`presets\`: what let it in), \`network\` (what was recorded, denied or ended it: \`action\`, \`host\`, \`port\`,
\`rule\`, \`message\`, \`hint\`) and \`code\` (the same of code that nobody vouches for, with \`path\`). What is not known, or did not happen, is left out.

\`ct run --progress=rawjson\` prints a line of JSON per event as it happens. \`type\` says which: \`progress\`,
\`job-start\`, the events of \`src/protocol/run.ts\` with the name of their \`job\`, \`output\` (\`stream\`, \`step\`,
and \`text\`, or \`base64\` where the bytes are not UTF-8), \`job-end\`, and at the end \`end\` with the document above.
\`ct logs --json\` prints the same of a run that is on record, each with its \`time\` (and no \`end\`), and \`dropped\` (\`bytes\`)
where output was not kept.

\`ct ps --json\` prints a line of JSON per run; [runs.md](runs.md) lists its keys and those of \`ct inspect --json\`.
\`ct alerts --json\` prints a line per alert; [alerts.md](alerts.md) lists its keys. \`ct policy check --json\` prints
\`version\`, \`policy\`, \`allowed\` and \`jobs\` (\`name\`, \`image\`, \`allowed\`, \`denials\`, \`network\`, \`code\`, \`presets\`);
\`ct policy explain --json\` prints \`version\`, \`run\`, \`job\`, \`policy\`, \`full\` (later events are missing) and
\`denials\` (\`id\`, \`time\`, \`step\`, \`action\`, \`count\`, \`rule\`, \`message\`, \`hint\`, \`request\`, \`source\`, \`data\`).

An error before any job has run is \`{"error": {"code", "message", "hint"}}\` on stdout with \`--json\`.`;

function twoColumns(rows: readonly (readonly [string, string])[]): string {
  const width = Math.min(30, Math.max(...rows.map(([left]) => left.length))) + 2;
  return rows
    .map(([left, right]) => {
      const text = wrap(right, width + 2);
      return left.length + 2 > width
        ? `  ${left}\n${' '.repeat(width + 2)}${text}`
        : `  ${left.padEnd(width)}${text}`;
    })
    .join('\n');
}

/** Breaks `text` at spaces; lines after the first start with `indent` spaces. */
function wrap(text: string, indent: number, width = WIDTH): string {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && indent + line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === '' ? word : `${line} ${word}`;
    }
  }
  return [...lines, line].join(`\n${' '.repeat(indent)}`);
}
