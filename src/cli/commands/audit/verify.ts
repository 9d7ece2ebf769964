/** `ct audit verify`. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { HOST_PUBLIC_KEY_NAME, trustKeyFile } from '../../../audit/host-key.ts';
import { auditDirectory, keysDirectory } from '../../../audit/places.ts';
import { isRunId } from '../../../audit/segment-format.ts';
import { type AuditVerdict, verifyAudit } from '../../../audit/verify.ts';
import { CtError, ERROR_CODES, type ErrorCode, EXIT_STATUS } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import type { ParsedOptions } from '../../command.ts';
import { anyHost } from '../../host.ts';
import type { Output } from '../../output.ts';
import { formatBytes, formatError, oneLine, type Style, styleFor } from '../../render/format.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = ctHomePath();
  const id = await runId(ctHome, parsed.positionals[0] ?? 'latest');
  const directory = auditDirectory(ctHome, id);
  if (!existsSync(directory)) {
    throw new CtError('AUDIT_NOT_FOUND', `there is no audit record of the run ${id}`, {
      hint: 'records are kept as long as their runs; `ct ps -a` lists those',
    });
  }
  const key = parsed.value('key') ?? join(keysDirectory(ctHome), HOST_PUBLIC_KEY_NAME);
  const trust = await trustKeyFile(key);
  const verdict = await verifyAudit({ directory, run: id, trust, now: new Date() });
  const code = codeOf(verdict);
  if (parsed.has('json')) {
    output.write('stdout', `${JSON.stringify(verdictJson(id, directory, verdict), undefined, 2)}\n`);
  } else if (verdict.status === 'proved') {
    output.write('stdout', proofText(id, verdict, styleFor(output.isTty.stdout)));
  } else if (code !== undefined) {
    output.write('stderr', formatError({ code, message: verdict.message }, styleFor(output.isTty.stderr)));
  }
  return code === undefined ? 0 : EXIT_STATUS[ERROR_CODES[code].kind];
}

/** A run that is on disk needs no daemon, and may be one that the daemon does not know any more. */
async function runId(ctHome: string, name: string): Promise<string> {
  if (isRunId(name) && existsSync(auditDirectory(ctHome, name))) return name;
  return (await (await anyHost()).run(name)).run;
}

function codeOf({ status }: AuditVerdict): ErrorCode | undefined {
  if (status === 'proved') return undefined;
  return status === 'tampered' ? 'AUDIT_TAMPERED' : 'AUDIT_INCOMPLETE';
}

/** Version 1 of the document; docs/audit.md describes it. */
export function verdictJson(run: string, directory: string, verdict: AuditVerdict): object {
  const code = codeOf(verdict);
  const document = { version: 1, run, directory, status: verdict.status };
  if (verdict.status === 'proved') return { ...document, seal: verdict.seal };
  const error = { code, message: verdict.message };
  if (verdict.status === 'tampered') {
    const { file, from, to } = verdict.place;
    const place = { file, ...(from === undefined ? {} : { from }), ...(to === undefined ? {} : { to }) };
    return { ...document, error, damage: verdict.damage, place };
  }
  return {
    ...document,
    error,
    reason: verdict.reason,
    frames: verdict.frames,
    ...(verdict.seal ? { seal: verdict.seal } : {}),
  };
}

function proofText(run: string, { seal }: Extract<AuditVerdict, { status: 'proved' }>, style: Style): string {
  const { record } = seal;
  const { cpus, processRecords, bytes } = record.counts;
  const calls = cpus.reduce((sum, { records }) => sum + records, 0);
  const stored = record.segments.reduce((sum, segment) => sum + segment.bytes, 0);
  const lines = [
    [
      'record',
      `${calls} of system calls on ${cpus.length === 1 ? '1 CPU' : `${cpus.length} CPUs`}, ${processRecords} of processes, no gaps`,
    ],
    ['files', `${record.segments.length}, ${formatBytes(stored)} for ${formatBytes(bytes)}`],
    ['head', record.head],
    [
      'run',
      `${oneLine(seal.outcome)}, in ${oneLine(seal.image)} on ${oneLine(`${seal.vmm}, ${seal.accelerator}`)}`,
    ],
    ['policy', oneLine(seal.policy)],
    ['sealed', oneLine(seal.sealedAt)],
  ];
  const head = `${style.green('intact and complete')}: the audit record of the run ${run}\n`;
  return head + lines.map(([name = '', text]) => `  ${name.padEnd(8)}${text}\n`).join('');
}
