/** Files of packages that were fetched once. None of them is used without being compared with its digest. */
import { createHash } from 'node:crypto';
import { chmodSync, createReadStream, existsSync, linkSync, mkdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { fileName, type LockedPackage } from './packages.ts';

const READ_BYTES = 1024 * 1024;

export class PackageCache {
  readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
    mkdirSync(directory, { recursive: true, mode: 0o755 });
  }

  path(entry: LockedPackage): string {
    return join(this.directory, fileName(entry));
  }

  /** Those that are not here, or are here with other contents. */
  async missing(packages: readonly LockedPackage[]): Promise<readonly LockedPackage[]> {
    const missing: LockedPackage[] = [];
    for (const entry of packages) {
      const path = this.path(entry);
      if (!existsSync(path) || (await sha256Of(path)) !== entry.sha256) missing.push(entry);
    }
    return missing;
  }

  /** Takes a file in if it is the one that `entry` stands for; otherwise leaves it where it is and says what it is. */
  async take(file: string, entry: LockedPackage): Promise<{ readonly otherSha256: string } | undefined> {
    const sha256 = await sha256Of(file);
    if (sha256 !== entry.sha256) return { otherSha256: sha256 };
    renameSync(file, this.path(entry));
    return undefined;
  }

  /** Hard links in `into`, readable by all. */
  link(packages: readonly LockedPackage[], into: string): void {
    for (const entry of packages) {
      chmodSync(this.path(entry), 0o644);
      linkSync(this.path(entry), join(into, fileName(entry)));
    }
  }
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: READ_BYTES }))
    hash.update(chunk as Buffer);
  return hash.digest('hex');
}
