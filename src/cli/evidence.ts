/**
 * Evidence about a working tree, read as the caller when the host daemon asks for it. What is not there is not sent: whether
 * it has to be, policy decides.
 */
import { execFile } from 'node:child_process';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { printable } from '../core/source-text.ts';
import {
  type Evidence,
  type EvidenceKind,
  type EvidencePart,
  MAX_EVIDENCE_BYTES,
} from '../protocol/evidence.ts';
import { type EvidenceDemands, USUAL_LOCKS } from '../protocol/verify.ts';
import { MAX_COMMIT_BYTES } from '../verification/commit.ts';
import { evidencePath } from '../verification/dependencies/evidence-file.ts';

/** git looks at every file. */
const GIT_TIMEOUT_MS = 60_000;
const MAX_STATUS_BYTES = 1024 * 1024;
const DIRTY_SHOWN = 10;
/** Besides them there is a commit and a list. */
const MAX_FILES_BYTES = MAX_EVIDENCE_BYTES - 2 * MAX_COMMIT_BYTES;

/** Throws VERIFY_EVIDENCE_MISSING for files that are too large to be sent, WORKSPACE_UNREADABLE. */
export async function collectEvidence(root: string, demands: EvidenceDemands): Promise<Evidence> {
  const parts: EvidencePart[] = [];
  let bytes = 0;
  const add = async (kind: EvidenceKind, path: string): Promise<boolean> => {
    const content = await readFile(root, path, MAX_FILES_BYTES - bytes);
    if (content === undefined) return false;
    bytes += content.length;
    parts.push({ kind, path, bytes: content });
    return true;
  };
  let dirty: readonly string[] = [];
  if (demands.commit) {
    const [object, status] = await Promise.all([commitObject(root), dirtyPaths(root)]);
    if (object) parts.push({ kind: 'commit', path: '', bytes: object });
    dirty = status;
  }
  for (const path of new Set(demands.scripts)) await add('manifest', path);
  if (demands.dependencies !== 'none') {
    for (const path of new Set(demands.locks ?? USUAL_LOCKS)) {
      if ((await add('lock', path)) && demands.dependencies !== 'integrity')
        await add('evidence', evidencePath(path));
    }
  }
  return { parts, dirty };
}

/** The commit as git stores it; undefined outside of the top of a work tree, and before the first commit. */
async function commitObject(root: string): Promise<Buffer | undefined> {
  const prefix = await git(root, ['rev-parse', '--show-prefix'], MAX_STATUS_BYTES);
  if (prefix?.toString('utf8').trim() !== '') return undefined;
  return await git(root, ['cat-file', 'commit', 'HEAD'], MAX_COMMIT_BYTES);
}

async function dirtyPaths(root: string): Promise<readonly string[]> {
  const status = await git(
    root,
    ['status', '--porcelain=v1', '-z', '--no-renames', '--ignore-submodules=all'],
    MAX_STATUS_BYTES,
    await withoutFilters(root),
  );
  const lines = (status?.toString('utf8') ?? '').split('\0').filter((line) => line !== '');
  return lines.slice(0, DIRTY_SHOWN).map((line) => printable(line.slice(3)));
}

/**
 * git would run a filter that the repository configures. Without it, files that pass through one differ from the commit, which
 * is what the comparison of the tree will say as well.
 *
 * In variables, because a name may have a `=`, at which git would end it in `-c`.
 */
async function withoutFilters(root: string): Promise<Readonly<Record<string, string>>> {
  const pattern = '^filter\\..*\\.(clean|smudge|process|required)$';
  const found = await git(root, ['config', '-z', '--name-only', '--get-regexp', pattern], MAX_STATUS_BYTES);
  const names = [...new Set((found?.toString('utf8') ?? '').split('\0').filter((name) => name !== ''))];
  const settings = names.flatMap((name, index) => [
    [`GIT_CONFIG_KEY_${index}`, name],
    [`GIT_CONFIG_VALUE_${index}`, name.endsWith('.required') ? 'false' : ''],
  ]);
  return { ...Object.fromEntries(settings), GIT_CONFIG_COUNT: String(names.length) };
}

/** What git prints; undefined if it fails or prints more than that. */
function git(
  root: string,
  args: readonly string[],
  maxBytes: number,
  settings: Readonly<Record<string, string>> = {},
): Promise<Buffer | undefined> {
  const { promise, resolve } = Promise.withResolvers<Buffer | undefined>();
  execFile(
    'git',
    // What a repository configures must not run while it is judged.
    ['-C', root, '--no-optional-locks', '--no-replace-objects', '-c', 'core.fsmonitor=false', ...args],
    {
      encoding: 'buffer',
      timeout: GIT_TIMEOUT_MS,
      killSignal: 'SIGKILL',
      maxBuffer: maxBytes,
      env: {
        PATH: process.env['PATH'] ?? '/usr/bin:/bin',
        HOME: process.env['HOME'] ?? '/',
        LC_ALL: 'C',
        GIT_TERMINAL_PROMPT: '0',
        // An object that is not there is not fetched, which a repository can have done by any program.
        GIT_NO_LAZY_FETCH: '1',
        GIT_ALLOW_PROTOCOL: 'none',
        ...settings,
      },
    },
    (error, stdout) => resolve(error ? undefined : stdout),
  );
  return promise;
}

/** Undefined if there is no such file. A link is none: what counts is what is sent under that name. */
async function readFile(root: string, path: string, maxBytes: number): Promise<Buffer | undefined> {
  try {
    await using file = await open(
      join(root, path),
      constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
    );
    const stat = await file.stat();
    if (!stat.isFile()) return undefined;
    if (stat.size > maxBytes) {
      // Whoever wrote it chooses no other end than a denial.
      throw new CtError('VERIFY_EVIDENCE_MISSING', `${printable(path)} is too large to be verified`);
    }
    return await file.readFile();
  } catch (error) {
    if (error instanceof CtError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ELOOP') return undefined;
    throw new CtError('WORKSPACE_UNREADABLE', `cannot read ${printable(path)}: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
