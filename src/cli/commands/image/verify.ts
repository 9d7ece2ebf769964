/** `ct image verify`. */
import { ctHomePath } from '../../../core/paths.ts';
import { blobsOf } from '../../../image/manifest.ts';
import { ImageStore } from '../../../image/store.ts';
import { verifyImage } from '../../../image/verify.ts';
import type { ParsedOptions } from '../../command.ts';
import { acceptedSigners, describeSigner } from '../../image-signers.ts';
import { storedDigest } from '../../images.ts';
import type { Output } from '../../output.ts';
import { Terminal } from '../../render/terminal.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = ctHomePath();
  const signers = acceptedSigners(parsed);
  const digest = await storedDigest(new ImageStore(ctHome), parsed.positionals[0] ?? '');
  const full = parsed.has('full');
  const { manifest, signer, signatures, attestations } = await verifyImage({
    ctHome,
    digest,
    signers,
    full,
    now: new Date(),
  });
  const parts = blobsOf(manifest).length;
  if (parsed.has('json')) {
    const signed = attestations.map(({ kind, verified, builder }) => ({
      kind,
      builder,
      signer: verified.signer,
    }));
    const document = {
      ...{ version: 1, name: manifest.name, digest, parts, full, signatures },
      verified: signer,
      attestations: signed,
    };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
    return 0;
  }
  using terminal = new Terminal(output, { live: false });
  terminal.line(
    `${terminal.style.green('✓')} ${manifest.name} has its ${parts} parts as the manifest names them`,
  );
  terminal.line(terminal.style.dim(`  ${digest}`));
  if (signer !== undefined) {
    terminal.line(`${terminal.style.green('✓')} signed by ${describeSigner(signer)}`);
    for (const { kind, verified, builder } of attestations) {
      const what = kind === 'sbom' ? 'SBOM' : `provenance (built by ${builder ?? 'nobody that it names'})`;
      terminal.line(`${terminal.style.green('✓')} ${what}, signed by ${describeSigner(verified)}`);
    }
  } else {
    const has = signatures === 1 ? 'it has 1 signature' : `it has ${signatures} signatures`;
    terminal.line(
      terminal.style.dim(`  ${has}; --key or --identity says whose is accepted, and none was looked at`),
    );
  }
  return 0;
}
