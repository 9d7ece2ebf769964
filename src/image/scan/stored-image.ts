/** The SBOM of a stored image, as scans need it. */
import { CtError } from '../../core/errors.ts';
import type { ImageStore, StoredImage } from '../store.ts';

/** Of CycloneDX, in JSON. Throws IMAGE_NOT_FOUND if none was made, IMAGE_CORRUPT. */
export async function readSbom(store: ImageStore, image: StoredImage): Promise<string> {
  const { sbom } = await store.manifest(image.digest);
  if (sbom !== undefined) return (await store.readBlob(sbom.cyclonedx)).toString('utf8');
  throw new CtError(
    'IMAGE_NOT_FOUND',
    `no SBOM was made of the image ${image.name}, so nobody knows what is in it`,
    { hint: 'SBOMs are made by `ct image build`; `--force` builds an image that is current once more' },
  );
}
