/** A small image in a CT_HOME of its own: real file system and manifest, kernel and initramfs of random bytes. */
import { randomBytes } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type ImportedImage, importImage } from '../../src/image/import/import.ts';
import { ImageStore } from '../../src/image/store.ts';
import { tar, writeLayout } from './oci-layout.ts';

export async function storeSmallImage(
  directory: string,
  name: string,
  { kernelBytes = 200_000 }: { readonly kernelBytes?: number } = {},
): Promise<ImportedImage & { readonly ctHome: string }> {
  const ctHome = join(directory, 'home');
  mkdirSync(ctHome, { recursive: true, mode: 0o700 });
  const store = new ImageStore(ctHome);
  store.prepare();
  const kernel = { ...(await store.putBytes(randomBytes(kernelBytes))), version: '6.1.0-test' };
  const initramfs = await store.putBytes(randomBytes(1000));
  const layout = join(directory, 'layout');
  writeLayout(layout, { layers: [tar([{ name: 'app', data: 'a program', mode: 0o755 }])] });
  const image = await importImage({
    source: { kind: 'oci', path: layout },
    name,
    ctHome,
    machine: { kernel, initramfs },
    allowSetuid: false,
  });
  return { ...image, ctHome };
}
