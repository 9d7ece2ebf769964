/** `ct image lock`. */
import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { CtError } from '../../../core/errors.ts';
import { installRoot } from '../../../core/install.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { resolveLock } from '../../../image/build.ts';
import { definitionNames, lockPath } from '../../../image/definition.ts';
import { diffSides, type ImageDiff, lockSide } from '../../../image/diff.ts';
import { formatLock, type ImageLock, lockDigest, readLock } from '../../../image/lock-file.ts';
import { describeDifference } from '../../../image/package-diff.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import { definitionDirectories } from '../../images.ts';
import type { Output } from '../../output.ts';
import { Terminal } from '../../render/terminal.ts';

interface LockResult {
  readonly name: string;
  readonly path: string;
  /** `new`: there was no lock. `builder`: same packages, by another ct or for another definition of the same. */
  readonly state: 'same' | 'new' | 'changed' | 'builder';
  readonly diff: ImageDiff;
}

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const directory = resolve(parsed.value('directory') ?? '.');
  const check = parsed.has('check');
  const names = parsed.positionals.length > 0 ? parsed.positionals : ownImages(directory);
  using cancellation = cancelOnSignals(output);
  using terminal = new Terminal(output, { live: output.isTty.stderr && process.env['CI'] !== 'true' });
  let status: string | undefined;
  terminal.showStatus(() => status);
  const results: LockResult[] = [];
  for (const name of names) {
    const definitionDirs = definitionDirectories(directory);
    const path = lockPath(name, definitionDirs);
    // One that cannot be read is replaced: that is what the error asks for.
    const known = check ? readLock(path) : readReplaceable(path);
    const lock = await resolveLock({
      ...{ name, definitionDirs, ctHome: ctHomePath(), signal: cancellation.signal },
      progress: ({ message }) => {
        status = `image ${name}: ${message}`;
      },
    });
    status = undefined;
    const result = compare(name, path, known, lock);
    results.push(result);
    if (!check && result.state !== 'same') writeAtomically(path, formatLock(lock));
    if (!parsed.has('json')) for (const line of describe(result, check)) terminal.line(line);
  }
  if (parsed.has('json')) {
    const images = results.map(({ diff, ...rest }) => ({
      ...rest,
      packages: diff.packages,
      npm: diff.npm,
      kernel: diff.kernel,
    }));
    output.write('stdout', `${JSON.stringify({ version: 1, images }, undefined, 2)}\n`);
  }
  return check && results.some(({ state }) => state === 'new' || state === 'changed') ? 1 : 0;
}

/** Those of the project; those of ct only in ct's own checkout. */
function ownImages(directory: string): readonly string[] {
  const own = directory === installRoot ? join(installRoot, 'images') : join(directory, '.ct/images');
  const names = definitionNames([own]);
  if (names.length > 0) return names;
  throw new CtError('USAGE', 'this project defines no images of its own', {
    hint: 'name the images to lock, such as `ct image lock debian-12`',
  });
}

function readReplaceable(path: string): ImageLock | undefined {
  try {
    return readLock(path);
  } catch (error) {
    if (error instanceof CtError && error.code === 'IMAGE_LOCK_INVALID') return undefined;
    throw error;
  }
}

function compare(name: string, path: string, known: ImageLock | undefined, lock: ImageLock): LockResult {
  const nothing = { label: 'nothing', packages: [], npm: [], kernel: undefined };
  const diff = diffSides(known === undefined ? nothing : lockSide(known, 'before'), lockSide(lock, 'now'));
  if (known === undefined) return { name, path, state: 'new', diff };
  if (formatLock(known) === formatLock(lock)) return { name, path, state: 'same', diff };
  return { name, path, state: lockDigest(known) === lockDigest(lock) ? 'builder' : 'changed', diff };
}

function describe({ name, path, state, diff }: LockResult, check: boolean): readonly string[] {
  const shown = relative('.', path);
  if (state === 'same') return [`${name}: ${shown} is up to date`];
  if (state === 'new') {
    const what = `${diff.packages.length} packages`;
    return [check ? `${name}: there is no ${shown}` : `${name}: ${shown} is new, with ${what}`];
  }
  if (state === 'builder') {
    return [
      `${name}: the packages of ${shown} are up to date${check ? '' : '; it names this version of ct now'}`,
    ];
  }
  return [
    `${name}: ${check ? `${shown} would change` : `${shown} has changed`}`,
    ...(diff.kernel ? [`  ~ kernel ${diff.kernel.from} → ${diff.kernel.to}`] : []),
    ...[...diff.packages, ...diff.npm].map((entry) => `  ${describeDifference(entry)}`),
  ];
}

function writeAtomically(path: string, text: string): void {
  const temporary = `${path}.${process.pid}`;
  try {
    writeFileSync(temporary, text, { mode: 0o644, flag: 'wx' });
    renameSync(temporary, path);
  } finally {
    rmSync(temporary, { force: true });
  }
}
