/** `ct image sign`. */
import { ctHomePath } from '../../../core/paths.ts';
import { attestationStatement } from '../../../image/attestations.ts';
import { builtBy, readProvenance } from '../../../image/image-provenance.ts';
import { blobsOf } from '../../../image/manifest.ts';
import { ImageSignatures, imageStatement } from '../../../image/signatures.ts';
import { ImageStore } from '../../../image/store.ts';
import type { ParsedOptions } from '../../command.ts';
import { storedDigest } from '../../images.ts';
import type { Output } from '../../output.ts';
import { Terminal } from '../../render/terminal.ts';
import { signerOf } from '../../signer.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const signer = await signerOf(parsed);
  const ctHome = ctHomePath();
  const store = new ImageStore(ctHome);
  const digest = await storedDigest(store, parsed.positionals[0] ?? '');
  const manifest = await store.manifest(digest);
  // Nobody shall stand for what is damaged already.
  for (const ref of blobsOf(manifest)) await store.checkedBlobPath(ref);
  const stored = await store.find(manifest.name);
  const inputsDigest = stored?.digest === digest ? stored.inputsDigest : undefined;
  const bundle = await signer.signStatement(
    imageStatement(manifest.name, digest, { signedAt: new Date(), inputsDigest }),
  );
  const signatures = new ImageSignatures(ctHome);
  await signatures.add(digest, bundle);
  const attested: string[] = [];
  const provenance = await readProvenance(ctHome, digest);
  if (provenance !== undefined) {
    const builder = parsed.value('builder');
    const predicate = builder === undefined ? provenance : builtBy(provenance, builder);
    const statement = attestationStatement('provenance', manifest.name, digest, predicate);
    await signatures.add(digest, await signer.signStatement(statement));
    attested.push('provenance');
  }
  if (manifest.sbom !== undefined) {
    const document: unknown = JSON.parse((await store.readBlob(manifest.sbom.cyclonedx)).toString('utf8'));
    const statement = attestationStatement('sbom', manifest.name, digest, document);
    await signatures.add(digest, await signer.signStatement(statement));
    attested.push('SBOM');
  }
  if (parsed.has('json')) {
    output.write(
      'stdout',
      `${JSON.stringify({ version: 1, name: manifest.name, digest, attested }, undefined, 2)}\n`,
    );
    return 0;
  }
  using terminal = new Terminal(output, { live: false });
  const also = attested.length === 0 ? '' : `, with ${attested.join(' and ')}`;
  terminal.line(`${terminal.style.green('✓')} ${manifest.name} signed (${digest.slice(0, 19)})${also}`);
  return 0;
}
