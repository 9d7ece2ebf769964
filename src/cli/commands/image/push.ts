/** `ct image push`. */
import { ctHomePath } from '../../../core/paths.ts';
import { findCredentials } from '../../../image/oci/credentials.ts';
import { pushImage } from '../../../image/oci/distribute.ts';
import { parseReference } from '../../../image/oci/reference.ts';
import { Registry } from '../../../image/oci/registry.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { Terminal } from '../../render/terminal.ts';
import { transferStatus } from './pull.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const [name = '', target = ''] = parsed.positionals;
  const reference = parseReference(target);
  using cancellation = cancelOnSignals(output);
  using terminal = new Terminal(output, { live: output.isTty.stderr && process.env['CI'] !== 'true' });
  const { signal } = cancellation;
  const credentials = () => findCredentials(reference.host, { env: process.env });
  const pushed = await pushImage(name, {
    registry: new Registry(reference, { credentials, signal }),
    reference,
    ctHome: ctHomePath(),
    signal,
    progress: transferStatus(terminal, 'pushing'),
  });
  if (parsed.has('json')) {
    output.write('stdout', `${JSON.stringify({ version: 1, name, ...pushed }, undefined, 2)}\n`);
    return 0;
  }
  const { digest, registryDigest, signatures } = pushed;
  const signed = signatures === 0 ? 'unsigned' : `${signatures} signature${signatures === 1 ? '' : 's'}`;
  const { host, repository, tag } = reference;
  terminal.line(
    `${terminal.style.green('✓')} ${name} pushed to ${host}/${repository}:${tag} (${digest.slice(0, 19)}, ${signed})`,
  );
  terminal.line(terminal.style.dim(`  ${host}/${repository}@${registryDigest}`));
  return 0;
}
