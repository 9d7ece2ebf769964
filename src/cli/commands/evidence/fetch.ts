/** `ct evidence fetch`. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { CtError, messageOf } from '../../../core/errors.ts';
import { printable } from '../../../core/source-text.ts';
import { resolveNpm } from '../../../egress/presets/npm.ts';
import { resolvePypi } from '../../../egress/presets/pypi.ts';
import { USUAL_LOCKS } from '../../../protocol/verify.ts';
import { evidencePath } from '../../../verification/dependencies/evidence-file.ts';
import { parsePackageLock } from '../../../verification/dependencies/package-lock.ts';
import { parseRequirements } from '../../../verification/dependencies/requirements.ts';
import type { ParsedOptions } from '../../command.ts';
import { readInput } from '../../image-signers.ts';
import type { Output } from '../../output.ts';
import { type FoundEvidence, npmEvidence, pythonEvidence } from '../../registry-evidence.ts';
import { Terminal } from '../../render/terminal.ts';
import { writeInProject } from '../../write-in-project.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const root = resolve(parsed.value('directory') ?? '.');
  const named = parsed.positionals;
  const locks = named.length > 0 ? named : USUAL_LOCKS.filter((lock) => existsSync(resolve(root, lock)));
  if (locks.length === 0) {
    throw new CtError('USAGE', `there is none of ${USUAL_LOCKS.join(', ')} in ${root}`, {
      hint: 'name the lock file: ct evidence fetch FILE',
    });
  }
  const report: object[] = [];
  using terminal = new Terminal(output, { live: false });
  for (const lock of locks) {
    const found = await evidenceOf(lock, readInput(resolve(root, lock)));
    const path = evidencePath(lock);
    const document = { version: 1, packages: Object.fromEntries(found) };
    await writeInProject(resolve(root, path), `${JSON.stringify(document, undefined, 1)}\n`, path);
    const all = [...found.values()];
    const signed = all.filter(({ signatures }) => signatures.length > 0).length;
    const attested = all.filter(({ attestations }) => attestations.length > 0).length;
    report.push({ lock, evidence: path, packages: all.length, signed, attested });
    if (parsed.has('json')) continue;
    const counts = `${all.length} packages, ${signed} with signatures, ${attested} with attestations`;
    terminal.line(`${terminal.style.green('✓')} ${printable(path)}: ${counts}`);
  }
  if (parsed.has('json')) {
    output.write('stdout', `${JSON.stringify({ version: 1, locks: report }, undefined, 2)}\n`);
  }
  return 0;
}

async function evidenceOf(lock: string, bytes: Buffer): Promise<FoundEvidence> {
  const isPython = /\.(txt|in)$/.test(lock);
  const preset = isPython ? await resolvePypi(process.env) : await resolveNpm(process.env);
  const url = preset.env[isPython ? 'PIP_INDEX_URL' : 'npm_config_registry'] ?? '';
  try {
    return isPython
      ? await pythonEvidence(parseRequirements(bytes).packages, url)
      : await npmEvidence(parsePackageLock(bytes), url);
  } catch (error) {
    if (error instanceof CtError) throw error;
    throw new CtError('VERIFY_DEPENDENCY_INTEGRITY', `${printable(lock)}: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
