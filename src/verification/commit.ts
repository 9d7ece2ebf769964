/** Commits of git as objects (gitformat-commit): headers, an empty line, a message; a signature is one of the headers. */
import { createHash } from 'node:crypto';

/** Peer-controlled; headers, signature and message of a commit. */
export const MAX_COMMIT_BYTES = 1024 * 1024;

export interface Commit {
  /** In hex: SHA-1 or SHA-256, as that of the tree is. */
  readonly id: string;
  readonly tree: string;
  /** Undefined if nobody signed it. */
  readonly signature: string | undefined;
  /** The object without its signature. */
  readonly signed: Buffer;
}

/** Undefined if the bytes are no commit. */
export function parseCommit(bytes: Buffer): Commit | undefined {
  const end = bytes.indexOf('\n\n');
  if (bytes.length > MAX_COMMIT_BYTES || end === -1) return undefined;
  // latin1: as many characters as bytes.
  const lines = bytes
    .toString('latin1', 0, end + 1)
    .split('\n')
    .slice(0, -1);
  const tree = /^tree ([0-9a-f]{40}|[0-9a-f]{64})$/.exec(lines[0] ?? '')?.[1];
  if (tree === undefined) return undefined;
  const isSha1 = tree.length === 40;
  const header = isSha1 ? 'gpgsig ' : 'gpgsig-sha256 ';
  const kept: string[] = [];
  const signature: string[] = [];
  let at: 'signature' | 'other-signature' | 'header' = 'header';
  for (const line of lines) {
    if (!line.startsWith(' ')) {
      if (line.startsWith('tree ') && kept.length > 0) return undefined;
      const isOurs = line.startsWith(header);
      if (isOurs && signature.length > 0) return undefined;
      // git takes the signature for the other hash out as well, before it verifies.
      at = isOurs ? 'signature' : /^gpgsig(-sha256)? /.test(line) ? 'other-signature' : 'header';
    }
    if (at === 'signature') signature.push(line.startsWith(' ') ? line.slice(1) : line.slice(header.length));
    else if (at === 'header') kept.push(line);
  }
  return {
    id: createHash(isSha1 ? 'sha1' : 'sha256')
      .update(`commit ${bytes.length}\0`)
      .update(bytes)
      .digest('hex'),
    tree,
    signature: signature.length === 0 ? undefined : `${signature.join('\n')}\n`,
    signed: Buffer.concat([Buffer.from(`${kept.join('\n')}\n`, 'latin1'), bytes.subarray(end + 1)]),
  };
}
