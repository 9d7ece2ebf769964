/**
 * Which kernel modules must be loaded, and in what order.
 *
 * Debian's package carries no `modules.dep` (it is made at installation), so the dependencies come from where depmod
 * has them from: the `.modinfo` section of each module, NUL-separated `key=value` strings, of which `depends` lists
 * module names separated by commas (kernel/Documentation/kbuild/modules.rst).
 */
import { CtError } from '../core/errors.ts';

export interface ModuleInfo {
  /** As in the file name, with `-` as `_`: the kernel makes no difference between them. */
  readonly name: string;
  readonly depends: readonly string[];
}

/** Modules have a few hundred bytes of it; the file comes from a signed package. */
const MAX_MODINFO_BYTES = 65_536;

/** Reads the dependencies of a module file (ELF64, little endian). Throws IMAGE_BUILD_FAILED if it is none. */
export function readModuleInfo(fileName: string, file: Buffer): ModuleInfo {
  const section = findSection(file, '.modinfo');
  if (section === undefined || section.length > MAX_MODINFO_BYTES) {
    throw new CtError('IMAGE_BUILD_FAILED', `${fileName} is not a kernel module`);
  }
  const fields = section.toString('latin1').split('\0');
  const depends = fields.find((field) => field.startsWith('depends='))?.slice('depends='.length) ?? '';
  return {
    name: moduleName(fileName),
    depends: depends
      .split(',')
      .filter((name) => name !== '')
      .map(canonical),
  };
}

/** `kernel/fs/erofs/erofs.ko` → `erofs`; `dm-mod` → `dm_mod`. */
export function moduleName(fileName: string): string {
  return canonical((fileName.split('/').at(-1) ?? '').replace(/\.ko$/, ''));
}

/**
 * The modules `wanted` and all they depend on, each after its dependencies; as few reorderings as possible, so that the
 * order of `wanted` is kept. `lookup` answers undefined for what is built into the kernel; such a dependency is left out.
 * Throws IMAGE_BUILD_FAILED if a wanted module does not exist, or if modules depend on each other in a circle.
 */
export function loadOrder(
  wanted: readonly string[],
  lookup: (name: string) => ModuleInfo | undefined,
): readonly string[] {
  const order: string[] = [];
  const done = new Set<string>();
  const visit = (name: string, path: readonly string[]): void => {
    if (done.has(name)) return;
    if (path.includes(name)) {
      throw new CtError('IMAGE_BUILD_FAILED', `kernel modules depend on each other: ${path.join(', ')}`);
    }
    const module = lookup(name);
    if (module === undefined && path.length === 0) {
      throw new CtError('IMAGE_BUILD_FAILED', `the kernel package has no module ${name}`, {
        hint: 'this version of ct does not know this kernel; please report it',
      });
    }
    for (const dependency of module?.depends ?? []) visit(dependency, [...path, name]);
    done.add(name);
    if (module !== undefined) order.push(name);
  };
  for (const name of wanted) visit(canonical(name), []);
  return order;
}

function canonical(name: string): string {
  return name.replaceAll('-', '_');
}

/** The contents of a named section of an ELF64 little-endian file; undefined if there is none or the file is no ELF. */
function findSection(file: Buffer, wanted: string): Buffer | undefined {
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1)
    return undefined;
  const table = Number(file.readBigUInt64LE(40));
  const entryBytes = file.readUInt16LE(58);
  const count = file.readUInt16LE(60);
  const namesIndex = file.readUInt16LE(62);
  if (entryBytes < 64 || table + count * entryBytes > file.length || namesIndex >= count) return undefined;
  const section = (index: number): { readonly name: number; readonly bytes: Buffer } => {
    const at = table + index * entryBytes;
    const offset = Number(file.readBigUInt64LE(at + 24));
    const size = Number(file.readBigUInt64LE(at + 32));
    return { name: file.readUInt32LE(at), bytes: file.subarray(offset, offset + size) };
  };
  const names = section(namesIndex).bytes.toString('latin1');
  for (let index = 0; index < count; index++) {
    const { name, bytes } = section(index);
    if (names.slice(name, names.indexOf('\0', name)) === wanted) return bytes;
  }
  return undefined;
}
