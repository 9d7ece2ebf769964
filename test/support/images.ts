/** The images that tests boot, built once per machine into a CT_HOME of their own. */
import { chmodSync, constants, cpSync, existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { guestAgentPath, installRoot, probePath } from '../../src/core/install.ts';
import { buildImage } from '../../src/image/build.ts';

/** Kept between test runs, also of other checkouts: building an image takes a minute. */
export const testHome: string =
  process.env['CT_TEST_HOME'] ?? join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'ct-test');

/** Builds what is missing and returns the manifest's digest. */
export async function testImage(name: string): Promise<string> {
  const { digest } = await buildImage({
    name,
    definitionDirs: [join(installRoot, 'images')],
    ctHome: testHome,
    guestAgentPath,
    probePath,
    progress: () => {},
    signal: new AbortController().signal,
  });
  return digest;
}

/** A CT_HOME of its own in `directory`, with the images that are built. */
export function copyTestHome(directory: string): string {
  const home = join(directory, 'ct-home');
  for (const part of ['blobs', 'images', 'parts', 'recall']) {
    if (!existsSync(join(testHome, part))) continue;
    cpSync(join(testHome, part), join(home, part), { recursive: true, mode: constants.COPYFILE_FICLONE });
  }
  chmodSync(home, 0o700);
  return home;
}
