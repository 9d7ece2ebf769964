/** The working tree as a tree stream (docs/guest-link.md), and artifacts from one. */
import { CtError } from '../core/errors.ts';

export interface PackOptions {
  readonly root: string;
  /** Leave out what git would not list. */
  readonly respectIgnore: boolean;
  /** Send `.git` too, so that `git describe` and the like work in the job. Default true. */
  readonly includeGit?: boolean;
  readonly signal?: AbortSignal;
}

export interface TreeSummary {
  readonly files: number;
  readonly directories: number;
  readonly symlinks: number;
  /** Content bytes of files. */
  readonly bytes: number;
  /** Shortest paths that ignore rules left out, `node_modules/` for a whole directory; at most 50. */
  readonly ignored: readonly string[];
  /** How many there are in all. */
  readonly ignoredCount: number;
  /** At most 20 lines for the user, e.g. about a file that changed while it was read. */
  readonly warnings: readonly string[];
}

/** Iterate it once; `summary` is complete when the iteration has ended. */
export interface PackedTree extends AsyncIterable<Buffer> {
  readonly summary: TreeSummary;
}

export interface UnpackOptions {
  /** Refuse more content than this. Default: 64 GiB. */
  readonly maxBytes?: number;
  readonly signal?: AbortSignal;
}

export interface UnpackSummary {
  readonly files: number;
  readonly bytes: number;
  /** E.g. symbolic links that point outside and were left out. At most 20. */
  readonly warnings: readonly string[];
}

export function packTree(options: PackOptions): PackedTree {
  throw new CtError('INTERNAL', `not written yet: ${options.root}`);
}

export function unpackTree(
  stream: AsyncIterable<Uint8Array>,
  directory: string,
  options: UnpackOptions = {},
): Promise<UnpackSummary> {
  throw new CtError('INTERNAL', `not written yet: ${typeof stream} ${directory} ${options.maxBytes}`);
}
