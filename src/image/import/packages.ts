/** Which Debian packages a foreign tree says it has: dpkg's database, or that of distroless images. */
import type { ImageManifest } from '../manifest.ts';
import type { ContentSpool } from './content-spool.ts';
import type { FileTree } from './file-tree.ts';

/** That of a desktop has 5 MB. */
const MAX_STATUS_BYTES = 64 * 1024 * 1024;
const MAX_PACKAGES = 20_000;
const NAME = /^[a-z0-9][a-z0-9+.-]{0,127}$/;
const VERSION = /^[0-9A-Za-z][A-Za-z0-9.+:~-]{0,127}$/;
const ARCHITECTURE = /^[a-z0-9-]{1,31}$/;

type Packages = ImageManifest['packages'];

/** By name; empty if there is no database. What is in it was written by whoever made the image. */
export async function findPackages(tree: FileTree, spool: ContentSpool): Promise<Packages> {
  const found: Packages[number][] = [];
  const read = async (path: string, everything: boolean): Promise<void> => {
    const node = tree.get(path);
    if (node?.kind !== 'file' || node.data.sizeBytes > MAX_STATUS_BYTES) return;
    const text = (await spool.read(node.data, 0, node.data.sizeBytes)).toString('utf8');
    for (const paragraph of text.split(/\n\n+/)) {
      const field = (name: string): string =>
        new RegExp(`^${name}: ?(.*)$`, 'm').exec(paragraph)?.[1]?.trim() ?? '';
      const [name, version, architecture] = [field('Package'), field('Version'), field('Architecture')];
      if (!everything && field('Status') !== 'install ok installed') continue;
      if (!NAME.test(name) || !VERSION.test(version) || !ARCHITECTURE.test(architecture)) continue;
      if (found.length < MAX_PACKAGES) found.push({ name, version, architecture });
    }
  };
  await read('var/lib/dpkg/status', false);
  const directory = tree.get('var/lib/dpkg/status.d');
  if (directory?.kind === 'directory') {
    for (const name of [...directory.children.keys()].sort()) {
      if (!name.endsWith('.md5sums')) await read(`var/lib/dpkg/status.d/${name}`, true);
    }
  }
  return found.sort((a, b) =>
    a.name < b.name ? -1 : a.name > b.name ? 1 : a.architecture < b.architecture ? -1 : 1,
  );
}
