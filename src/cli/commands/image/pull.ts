/** `ct image pull`. */
import { ctHomePath, openCtHome } from '../../../core/paths.ts';
import { findCredentials } from '../../../image/oci/credentials.ts';
import { pullImage, type TransferProgress } from '../../../image/oci/distribute.ts';
import { parseReference } from '../../../image/oci/reference.ts';
import { Registry } from '../../../image/oci/registry.ts';
import { inputsOf } from '../../../image/signatures.ts';
import { verifyImageSignature } from '../../../image/verify.ts';
import type { VerifiedSigner } from '../../../verification/verify.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import { acceptedSigners, describeSigner } from '../../image-signers.ts';
import type { Output } from '../../output.ts';
import { formatBytes, progressBar } from '../../render/format.ts';
import { Terminal } from '../../render/terminal.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const reference = parseReference(parsed.positionals[0] ?? '');
  const name = parsed.value('name') ?? reference.repository.split('/').at(-1) ?? '';
  const signers = acceptedSigners(parsed);
  using cancellation = cancelOnSignals(output);
  using terminal = new Terminal(output, { live: output.isTty.stderr && process.env['CI'] !== 'true' });
  const { signal } = cancellation;
  const credentials = () => findCredentials(reference.host, { env: process.env });
  let signer: VerifiedSigner | undefined;
  const { digest, signatures } = await pullImage({
    registry: new Registry(reference, { credentials, signal }),
    reference,
    ctHome: openCtHome(ctHomePath()),
    name,
    signal,
    progress: transferStatus(terminal, 'pulling'),
    ...(signers === undefined
      ? {}
      : {
          verify: (manifestDigest, bundles) => {
            signer = verifyImageSignature(manifestDigest, bundles, signers, new Date());
            return signer.content.kind === 'statement' ? inputsOf(signer.content.statement) : undefined;
          },
        }),
  });
  if (parsed.has('json')) {
    const document = { version: 1, name, digest, signatures: signatures.length, signer: signer?.signer };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
    return 0;
  }
  terminal.line(`${terminal.style.green('✓')} ${name} pulled (${digest.slice(0, 19)})`);
  const about =
    signer === undefined
      ? 'nobody was named whose signature is accepted: its digests were compared, its signatures were not'
      : `signed by ${describeSigner(signer)}`;
  terminal.line(terminal.style.dim(`  ${about}`));
  return 0;
}

/** One line that follows a transfer; on a terminal only. */
export function transferStatus(terminal: Terminal, verb: string): (event: TransferProgress) => void {
  let status: string | undefined;
  terminal.showStatus(() => status);
  return ({ what, doneBytes, totalBytes }) => {
    const figures = `${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`;
    status = `${verb} ${progressBar(totalBytes === 0 ? 1 : doneBytes / totalBytes)} ${figures}, ${what}`;
  };
}
