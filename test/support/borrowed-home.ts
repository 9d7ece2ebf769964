/** A CT_HOME of a test's own, with a daemon and runs of its own, that boots the images of the test home. */
import { copyFileSync, existsSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { testHome, testImage } from './images.ts';

/** What src/image/ keeps below CT_HOME, and the verdict about KVM, which takes a boot to find. */
const IMAGE_DIRECTORIES = ['blobs', 'images', 'parts', 'checked', 'recall', 'cache'];
const VERDICT = 'accelerator.json';

/** Makes `directory`, which is empty and private, such a home. Its daemon is the caller's to stop. */
export async function borrowImages(directory: string): Promise<void> {
  await testImage('debian-12');
  for (const name of IMAGE_DIRECTORIES) {
    const path = join(testHome, name);
    if (existsSync(path)) symlinkSync(path, join(directory, name));
  }
  if (existsSync(join(testHome, VERDICT))) copyFileSync(join(testHome, VERDICT), join(directory, VERDICT));
}
