/** Makes a foreign tree one that a VM can start from: what a build of ours does in hooks/customize.sh. */
import type { ImageManifest } from '../manifest.ts';
import type { ContentSpool, Extent } from './content-spool.ts';
import {
  type DirectoryNode,
  type FileNode,
  type FileTree,
  ROOT_ATTRIBUTES,
  type TreeNode,
} from './file-tree.ts';
import { refused, shown } from './refusal.ts';

type User = ImageManifest['user'];

/** The VM mounts its own there; what an image has below them would never be seen. */
const MOUNT_POINTS = ['proc', 'sys', 'dev', 'run', 'tmp', 'var/tmp', 'home', 'workspace'];
const WRITABLE_BY_ALL = new Set(['tmp', 'var/tmp']);
/** Keys and identity that a machine made for itself when it was booted: every VM makes its own. */
const IDENTITY_FILES = [
  ['var/lib/dbus', /^machine-id$/],
  ['var/lib/systemd', /^(random-seed|credential\.secret)$/],
  ['etc/ssh', /^ssh_host_/],
] as const;
/** Covered with the VM's own. */
const EMPTY_FILES = ['etc/hostname', 'etc/machine-id', 'etc/hosts', 'etc/resolv.conf'];
/** Debian's have some kilobytes; read into memory. */
const MAX_ACCOUNTS_BYTES = 1024 * 1024;

const SET_ID_BITS = 0o6000;
/** As image definitions allow them; a little more room above, where distroless has its account. */
const FIRST_UID = 1000;
const LAST_UID = 65_533;
const USER_NAME = /^[a-z][a-z0-9_-]{0,30}$/;
const HOME = /^\/home\/[a-z0-9][a-z0-9_-]{0,30}$/;

/** Paths of files that would give a process more rights than its user has: set-uid, set-gid, file capabilities. */
export function privilegedFiles({ root }: FileTree): readonly string[] {
  const found: string[] = [];
  for (const { path, node } of walk(root, '')) {
    if (node.kind === 'file' && ((node.mode & SET_ID_BITS) !== 0 || node.capabilities)) found.push(path);
  }
  return found;
}

/** Takes these rights away. They would be without effect anyway: the root is mounted nosuid. */
export function dropPrivileges(tree: FileTree): void {
  const plain = new Map<FileNode, FileNode>();
  for (const { node, parent, name } of walk(tree.root, '')) {
    if (node.kind !== 'file' || ((node.mode & SET_ID_BITS) === 0 && !node.capabilities)) continue;
    // The same object again, so that hard links stay hard links.
    const own = plain.get(node) ?? { ...node, mode: node.mode & ~SET_ID_BITS, capabilities: false };
    plain.set(node, own);
    parent.children.set(name, own);
  }
}

/** Empties or makes the mount points and the files that the VM covers, and removes what identifies a machine. */
export async function makeMountPoints(tree: FileTree, spool: ContentSpool): Promise<void> {
  const empty = await spool.put(new Uint8Array());
  // `/home -> usr/home` would be no mount point; a link among the parents is refused.
  for (const path of MOUNT_POINTS) {
    tree.replace(path, directory(WRITABLE_BY_ALL.has(path) ? 0o1777 : 0o755));
  }
  for (const [path, name] of IDENTITY_FILES) {
    const inside = tree.get(path);
    if (inside?.kind !== 'directory') continue;
    for (const each of inside.children.keys()) if (name.test(each)) inside.children.delete(each);
  }
  for (const path of EMPTY_FILES) tree.replace(path, file(empty, 0o644));
}

/**
 * The account that steps run as: the one that the image names, if it is an ordinary one with a home below /home, else a
 * new one, `ci`. `wanted` is what an OCI configuration has as `User`. The new one is added to the tree's files.
 */
export async function jobUser(tree: FileTree, spool: ContentSpool, wanted: string): Promise<User> {
  const passwd = await readLines(tree, spool, 'etc/passwd');
  const accounts = passwd.map((line) => line.split(':'));
  const [wantedName = ''] = wanted.split(':');
  const known = accounts.find(
    ([name, , uid]) => wantedName !== '' && (name === wantedName || uid === wantedName),
  );
  if (known !== undefined) {
    const [name = '', , uidText = '', gidText = '', , home = ''] = known;
    const [uid, gid] = [Number(uidText), Number(gidText)];
    if (USER_NAME.test(name) && isOrdinary(uid) && isOrdinary(gid) && HOME.test(home))
      return { name, uid, gid, home };
  }
  const groups = await readLines(tree, spool, 'etc/group');
  const taken = new Set([
    ...accounts.flatMap(([, , uid, gid]) => [uid, gid]),
    ...groups.map((line) => line.split(':')[2]),
  ]);
  const names = new Set([...accounts, ...groups.map((line) => line.split(':'))].map(([name]) => name));
  let uid = FIRST_UID;
  while (taken.has(String(uid)) && uid < LAST_UID) uid += 1;
  const name = ['ci', 'ct-job'].find((each) => !names.has(each));
  if (name === undefined) throw refused('the image has accounts of all names that a job could run as');
  const home = `/home/${name}`;
  const shell = (tree.get('bin/bash') ?? tree.get('usr/bin/bash')) ? '/bin/bash' : '/bin/sh';
  const rootLine = (what: string): string[] =>
    what === 'passwd' ? ['root:x:0:0:root:/root:/bin/sh'] : ['root:x:0:'];
  const add = async (path: string, lines: readonly string[], line: string): Promise<void> => {
    const before = lines.length === 0 ? rootLine(path.slice('etc/'.length)) : lines;
    const data = await spool.put(Buffer.from(`${[...before, line].join('\n')}\n`, 'latin1'));
    tree.replace(path, file(data, 0o644));
  };
  await add('etc/passwd', passwd, `${name}:x:${uid}:${uid}:${name}:${home}:${shell}`);
  await add('etc/group', groups, `${name}:x:${uid}:`);
  return { name, uid, gid: uid, home };
}

function isOrdinary(id: number): boolean {
  return Number.isInteger(id) && id >= FIRST_UID && id <= LAST_UID;
}

async function readLines(tree: FileTree, spool: ContentSpool, path: string): Promise<readonly string[]> {
  const node = tree.get(path);
  if (node === undefined) return [];
  if (node.kind !== 'file') throw refused(`${shown(path)} is no file in this image`);
  if (node.data.sizeBytes > MAX_ACCOUNTS_BYTES) throw refused(`${shown(path)} is too large`);
  const text = (await spool.read(node.data, 0, node.data.sizeBytes)).toString('latin1');
  return text.split('\n').filter((line) => line !== '');
}

function directory(mode: number): DirectoryNode {
  return { kind: 'directory', ...ROOT_ATTRIBUTES, mode, layer: 0, children: new Map() };
}

function file(data: Extent, mode: number): FileNode {
  return { kind: 'file', ...ROOT_ATTRIBUTES, mode, data, layer: 0, capabilities: false };
}

function* walk(
  parent: DirectoryNode,
  path: string,
): Generator<{
  readonly path: string;
  readonly name: string;
  readonly node: TreeNode;
  readonly parent: DirectoryNode;
}> {
  for (const [name, node] of parent.children) {
    const own = `${path}/${name}`;
    yield { path: own, name, node, parent };
    if (node.kind === 'directory') yield* walk(node, own);
  }
}
