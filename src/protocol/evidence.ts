/**
 * Evidence about a job on its way from the client to the daemon:
 *
 *     offset 0  u32  length of the header, big endian
 *     offset 4  JSON: {"parts": [{"kind", "path", "bytes"}…], "dirty": [path…]}
 *     then the bytes of each part, in that order
 *
 * The client controls the bytes. Nothing in them is believed: what counts in them is signed, or compared with the tree.
 */
import { CtError } from '../core/errors.ts';
import { hasKeys } from '../core/json.ts';
import { MAX_PATH_BYTES } from './limits.ts';

/** Lock files and attestations of some thousand packages. */
export const MAX_EVIDENCE_BYTES = 32 * 1024 * 1024;
const MAX_HEADER_BYTES = 512 * 1024;
const MAX_PARTS = 128;
const MAX_DIRTY = 20;

/** `evidence`: signatures and attestations for the packages of the lock file of that path. */
const KINDS = ['commit', 'manifest', 'lock', 'evidence'] as const;
export type EvidenceKind = (typeof KINDS)[number];

export interface EvidencePart {
  readonly kind: EvidenceKind;
  /** In the workspace; empty for the commit. */
  readonly path: string;
  readonly bytes: Buffer;
}

export interface Evidence {
  readonly parts: readonly EvidencePart[];
  /** Some of the paths in which git sees a difference to the commit: for messages, the tree itself decides. */
  readonly dirty: readonly string[];
}

export function encodeEvidence({ parts, dirty }: Evidence): Buffer {
  const listed = parts.map(({ kind, path, bytes }) => ({ kind, path, bytes: bytes.length }));
  const header = Buffer.from(JSON.stringify({ parts: listed, dirty: dirty.slice(0, MAX_DIRTY) }));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(header.length);
  return Buffer.concat([length, header, ...parts.map(({ bytes }) => bytes)]);
}

/** Throws HOST_PROTOCOL. */
export function parseEvidence(bytes: Buffer): Evidence {
  if (bytes.length < 4 || bytes.length > MAX_EVIDENCE_BYTES) throw malformed();
  const length = bytes.readUInt32BE(0);
  if (length > MAX_HEADER_BYTES || 4 + length > bytes.length) throw malformed();
  let header: unknown;
  try {
    header = JSON.parse(bytes.toString('utf8', 4, 4 + length));
  } catch {
    throw malformed();
  }
  if (!hasKeys(header, ['parts', 'dirty'])) throw malformed();
  const { parts: listed, dirty } = header;
  if (!Array.isArray(listed) || listed.length > MAX_PARTS) throw malformed();
  if (!Array.isArray(dirty) || dirty.length > MAX_DIRTY || !dirty.every(isPath)) throw malformed();
  const parts: EvidencePart[] = [];
  let at = 4 + length;
  for (const part of listed as unknown[]) {
    if (!hasKeys(part, ['kind', 'path', 'bytes'])) throw malformed();
    const { kind, path, bytes: size } = part;
    if (!KINDS.includes(kind as EvidenceKind) || !isPath(path)) throw malformed();
    if (!Number.isSafeInteger(size) || (size as number) < 0 || at + (size as number) > bytes.length)
      throw malformed();
    if (parts.some((other) => other.kind === kind && other.path === path)) throw malformed();
    parts.push({ kind: kind as EvidenceKind, path, bytes: bytes.subarray(at, at + (size as number)) });
    at += size as number;
  }
  if (at !== bytes.length) throw malformed();
  return { parts, dirty };
}

function isPath(value: unknown): value is string {
  return typeof value === 'string' && Buffer.byteLength(value) <= MAX_PATH_BYTES;
}

function malformed(): CtError {
  return new CtError('HOST_PROTOCOL', 'the client sent malformed evidence');
}
