/**
 * The package lists that the build of a file system sees: those of its packages and of no other. mmdebstrap and the apt
 * that it runs can then choose nothing else, and nothing of the machine's sources is known inside.
 */
import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { runProgram } from '../core/run-program.ts';
import type { PackageCache } from './package-cache.ts';
import { fileName, type LockedPackage } from './packages.ts';
import { PROGRAM_PATH } from './supervised.ts';

/** A name that leads nowhere (RFC 2606 §2): every file is there before, so nothing is ever fetched from it. */
const HOST = 'packages.invalid';
/** A control paragraph has some kilobytes. */
const MAX_CONTROL_BYTES = 1024 * 1024;
/** dpkg-deb takes a hundredth of a second. */
const AT_ONCE = 4;

/** A line of sources.list(5). `trusted`: the digests were checked by whoever put the files into the cache. */
export function repositorySource(suite: string): string {
  return `deb [trusted=yes arch=amd64] http://${HOST} ${suite} main\n`;
}

/**
 * Writes the lists for {@link repositorySource} into `directory`, named as apt looks for them. `alone`: they say nothing
 * of what packages depend on, for an image that has them without it. Throws IMAGE_BUILD_FAILED.
 */
export async function writeRepositoryLists(
  directory: string,
  suite: string,
  packages: readonly LockedPackage[],
  { cache, alone, signal }: { cache: PackageCache; alone: boolean; signal: AbortSignal | undefined },
): Promise<void> {
  const paragraphs: string[] = new Array(packages.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let at = next++; at < packages.length; at = next++) {
      const entry = packages[at] as LockedPackage;
      const path = cache.path(entry);
      const output = await runProgram({
        file: 'dpkg-deb',
        args: ['--field', path],
        env: { PATH: PROGRAM_PATH },
        maxOutputBytes: MAX_CONTROL_BYTES,
        failureCode: 'IMAGE_BUILD_FAILED',
        ...(signal ? { signal } : {}),
      });
      paragraphs[at] = [
        (alone ? withoutRelations(output.toString('utf8')) : output.toString('utf8')).trimEnd(),
        `Filename: pool/${fileName(entry)}`,
        `Size: ${statSync(path).size}`,
        `SHA256: ${entry.sha256}`,
        '',
        '',
      ].join('\n');
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  const release = `Origin: Debian\nSuite: ${suite}\nCodename: ${suite}\nArchitectures: all amd64\nComponents: main\n`;
  const base = `${HOST}_dists_${suite}`;
  writeFileSync(join(directory, `${base}_Release`), release, { mode: 0o644 });
  writeFileSync(join(directory, `${base}_main_binary-amd64_Packages`), paragraphs.join(''), { mode: 0o644 });
}

/** A paragraph without the fields that name other packages (Debian policy §7.2), with their continuation lines. */
function withoutRelations(paragraph: string): string {
  return paragraph.replaceAll(
    /^(?:Pre-Depends|Depends|Recommends|Suggests|Enhances|Breaks|Conflicts):.*\n(?:[ \t].*\n)*/gm,
    '',
  );
}
