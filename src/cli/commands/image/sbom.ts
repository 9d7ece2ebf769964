/** `ct image sbom`. */
import { writeFileSync } from 'node:fs';
import { CtError, messageOf } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { ImageStore } from '../../../image/store.ts';
import type { ParsedOptions } from '../../command.ts';
import { storedDigest } from '../../images.ts';
import type { Output } from '../../output.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const store = new ImageStore(ctHomePath());
  const manifest = await store.manifest(await storedDigest(store, parsed.positionals[0] ?? ''));
  if (manifest.sbom === undefined) {
    throw new CtError('IMAGE_NOT_FOUND', `no SBOM was made of the image ${manifest.name}`, {
      hint: 'SBOMs are made by `ct image build`; one that was imported has none',
    });
  }
  const ref = parsed.value('format') === 'spdx' ? manifest.sbom.spdx : manifest.sbom.cyclonedx;
  const bytes = await store.readBlob(ref);
  const file = parsed.value('output');
  if (file === undefined) {
    await output.write('stdout', bytes);
    return 0;
  }
  try {
    writeFileSync(file, bytes);
  } catch (error) {
    throw new CtError('USAGE', `the SBOM cannot be written: ${messageOf(error)}`, { cause: error });
  }
  return 0;
}
