/** `ct image provenance`. */
import { CtError } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { readProvenance } from '../../../image/image-provenance.ts';
import { ImageStore } from '../../../image/store.ts';
import type { ParsedOptions } from '../../command.ts';
import { acceptedSigners } from '../../image-signers.ts';
import { storedDigest } from '../../images.ts';
import type { Output } from '../../output.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = ctHomePath();
  const digest = await storedDigest(new ImageStore(ctHome), parsed.positionals[0] ?? '');
  const signers = acceptedSigners(parsed);
  const provenance =
    signers === undefined
      ? await readProvenance(ctHome, digest)
      : await signedProvenance(ctHome, digest, signers);
  if (provenance === undefined) {
    throw new CtError('IMAGE_NOT_FOUND', 'there is no provenance of the image', {
      hint: 'it is written when an image is built or imported; of one that was pulled, --key or --identity says whose counts',
    });
  }
  output.write('stdout', `${JSON.stringify(provenance, undefined, 2)}\n`);
  return 0;
}

/** Throws SIGNATURE_MISSING if no accepted signer has signed any. */
async function signedProvenance(
  ctHome: string,
  digest: string,
  signers: NonNullable<ReturnType<typeof acceptedSigners>>,
): Promise<unknown> {
  const { verifyAttestations } = await import('../../../image/verify.ts');
  const { ImageSignatures } = await import('../../../image/signatures.ts');
  const store = new ImageStore(ctHome);
  const manifest = await store.manifest(digest);
  const bundles = await new ImageSignatures(ctHome).list(digest);
  const attestations = await verifyAttestations(digest, manifest, store, bundles, signers, new Date());
  const found = attestations.find(({ kind }) => kind === 'provenance')?.verified.content;
  if (found?.kind === 'statement') return found.statement.predicate;
  throw new CtError('SIGNATURE_MISSING', 'no accepted signer has signed provenance of the image', {
    hint: '`ct image sign` signs it with the image',
  });
}
