/** `ct image sign`. */
import { ctHomePath } from '../../../core/paths.ts';
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
  await new ImageSignatures(ctHome).add(digest, bundle);
  if (parsed.has('json')) {
    output.write('stdout', `${JSON.stringify({ version: 1, name: manifest.name, digest }, undefined, 2)}\n`);
    return 0;
  }
  using terminal = new Terminal(output, { live: false });
  terminal.line(`${terminal.style.green('✓')} ${manifest.name} signed (${digest.slice(0, 19)})`);
  return 0;
}
