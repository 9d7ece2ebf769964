/** Tar archives and OCI layouts made by hand, honest and hostile ones. */
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';

export interface TarMember {
  readonly name: string;
  /** Type flag; `0`, a file, if absent. */
  readonly type?: string;
  readonly data?: Buffer | string;
  readonly target?: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Records of a pax header before it. */
  readonly pax?: Readonly<Record<string, string>>;
  /** Instead of the size of `data`. */
  readonly size?: number;
  /** Instead of zeros and digits. */
  readonly sizeField?: Buffer;
  /** Changes the header before its checksum is computed. */
  readonly edit?: (header: Buffer) => void;
}

const END = Buffer.alloc(1024);

export function tar(members: readonly TarMember[], end: Buffer = END): Buffer {
  return Buffer.concat([...members.flatMap(encodeMember), end]);
}

function encodeMember(member: TarMember): Buffer[] {
  const { pax } = member;
  if (pax === undefined) return plainMember(member);
  return [...plainMember({ name: 'PaxHeaders/x', type: 'x', data: paxData(pax) }), ...plainMember(member)];
}

export function paxData(records: Readonly<Record<string, string>>): Buffer {
  return Buffer.concat(
    Object.entries(records).map(([key, value]) => {
      const rest = Buffer.from(` ${key}=${value}\n`, 'latin1');
      let length = rest.length + 1;
      while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
      return Buffer.concat([Buffer.from(String(length)), rest]);
    }),
  );
}

function plainMember(member: TarMember): Buffer[] {
  const data = Buffer.from(member.data ?? '');
  const header = Buffer.alloc(512);
  const octal = (value: number, at: number, digits: number): void =>
    void header.write(`${value.toString(8).padStart(digits, '0')}\0`, at, 'latin1');
  header.write(member.name, 0, 100, 'latin1');
  octal(member.mode ?? (member.type === '5' ? 0o755 : 0o644), 100, 7);
  octal(member.uid ?? 0, 108, 7);
  octal(member.gid ?? 0, 116, 7);
  octal(member.size ?? data.length, 124, 11);
  member.sizeField?.copy(header, 124);
  octal(0, 136, 11);
  header.write(member.type ?? '0', 156, 'latin1');
  header.write(member.target ?? '', 157, 100, 'latin1');
  header.write('ustar\x0000', 257, 'latin1');
  member.edit?.(header);
  header.fill(' ', 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return [header, data, Buffer.alloc((512 - (data.length % 512)) % 512)];
}

export interface LayoutOptions {
  /** Archives, from the lowest layer on. */
  readonly layers: readonly Buffer[];
  readonly compression?: 'none' | 'gzip' | 'zstd';
  readonly config?: Readonly<Record<string, unknown>>;
  readonly tag?: string;
  /** Changes documents before they are written and digested. */
  readonly editManifest?: (manifest: LayoutManifest) => void;
  readonly editConfig?: (config: { rootfs: { diff_ids: string[] } } & Record<string, unknown>) => void;
  readonly editIndex?: (index: { manifests: Record<string, unknown>[] } & Record<string, unknown>) => void;
}

export interface LayoutManifest {
  mediaType: string;
  config: Record<string, unknown>;
  layers: Record<string, unknown>[];
  [key: string]: unknown;
}

/** Writes a layout into `directory` and returns the digest of its manifest. */
export function writeLayout(directory: string, options: LayoutOptions): string {
  const blobs = join(directory, 'blobs/sha256');
  mkdirSync(blobs, { recursive: true });
  const put = (bytes: Buffer): { digest: string; size: number } => {
    const digest = sha256(bytes);
    writeFileSync(join(blobs, digest.slice('sha256:'.length)), bytes);
    return { digest, size: bytes.length };
  };
  const { compression = 'none' } = options;
  const layers = options.layers.map((archive) => ({
    mediaType: `application/vnd.oci.image.layer.v1.tar${compression === 'none' ? '' : `+${compression}`}`,
    ...put(
      compression === 'gzip'
        ? gzipSync(archive)
        : compression === 'zstd'
          ? zstdCompressSync(archive)
          : archive,
    ),
  }));
  const config = {
    architecture: 'amd64',
    os: 'linux',
    config: options.config ?? {},
    rootfs: { type: 'layers', diff_ids: options.layers.map(sha256) },
  };
  options.editConfig?.(config);
  const manifest: LayoutManifest = {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...put(json(config)) },
    layers,
  };
  options.editManifest?.(manifest);
  const descriptor = put(json(manifest));
  const index = {
    schemaVersion: 2,
    manifests: [
      {
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        ...descriptor,
        ...(options.tag === undefined
          ? {}
          : { annotations: { 'org.opencontainers.image.ref.name': options.tag } }),
      },
    ],
  };
  options.editIndex?.(index);
  writeFileSync(join(directory, 'index.json'), json(index));
  writeFileSync(join(directory, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }));
  return descriptor.digest;
}

export function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

export function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}
