/** `ct image diff`. */

import { existsSync } from 'node:fs';
import { CtError, messageOf } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { runProgram } from '../../../core/run-program.ts';
import { policyDirectory } from '../../../host/policy-source.ts';
import { type DiffSide, diffMarkdown, diffSides, lockSide } from '../../../image/diff.ts';
import { type ImageLock, parseLock, readLock } from '../../../image/lock-file.ts';
import { readScanConfig } from '../../../image/scan/config.ts';
import { databasePath, VulnDatabase } from '../../../image/scan/database.ts';
import { packagesOfLock, packagesOfSbom, type SbomPackages } from '../../../image/scan/packages.ts';
import { scanWithDatabase } from '../../../image/scan/scan.ts';
import { ImageStore } from '../../../image/store.ts';
import type { ParsedOptions } from '../../command.ts';
import { storedDigest } from '../../images.ts';
import type { Output } from '../../output.ts';
import { formatBytes } from '../../render/format.ts';
import { imageSizeBytes } from './ls.ts';

/** As large as a lock may be. */
const MAX_LOCK_BYTES = 8 * 1024 * 1024;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  using scanner = openScanner();
  const [from, to] = await Promise.all(parsed.positionals.map((text) => readSide(text, scanner)));
  if (from === undefined || to === undefined)
    throw new CtError('USAGE', '`ct image diff` compares two images');
  const diff = diffSides(from, to);
  output.write(
    'stdout',
    parsed.has('json')
      ? `${JSON.stringify({ version: 1, ...diff }, undefined, 2)}\n`
      : diffMarkdown(diff, formatBytes),
  );
  return 0;
}

/** An image by name or digest, a lock by its path, `git:REV:PATH`, or `/dev/null` for none. */
async function readSide(text: string, scanner: Scanner): Promise<DiffSide> {
  if (text === '/dev/null') {
    return { label: 'nothing', packages: [], npm: [], kernel: undefined, ...scanner.ofNothing() };
  }
  if (text.startsWith('git:')) {
    const label = text.slice('git:'.length);
    const lock = parseLock(await readFromGit(label), text);
    return { ...lockSide(lock, label), ...scanner.ofLock(lock) };
  }
  if (text.endsWith('.json')) {
    const lock = readLock(text);
    if (lock !== undefined) return { ...lockSide(lock, text), ...scanner.ofLock(lock) };
    throw new CtError('IMAGE_NOT_FOUND', `there is no lock ${text}`);
  }
  const store = new ImageStore(ctHomePath());
  const digest = await storedDigest(store, text);
  const manifest = await store.manifest(digest);
  const inventory = manifest.inventory && (await store.readInventory(manifest.inventory));
  return {
    label: text,
    packages: inventory?.packages ?? manifest.packages,
    npm: manifest.npm ?? [],
    kernel: `Linux ${manifest.kernel.version}`,
    initramfs: manifest.initramfs.digest,
    sizeBytes: imageSizeBytes(manifest),
    ...(inventory ? { files: inventory.files } : {}),
    ...(manifest.sbom
      ? scanner.ofSbom(
          manifest.name,
          digest,
          (await store.readBlob(manifest.sbom.cyclonedx)).toString('utf8'),
        )
      : {}),
  };
}

type Found = Pick<DiffSide, 'findings'>;

/** What is known of either side; nothing without a database, or of what it knows nothing about. */
interface Scanner extends Disposable {
  ofNothing(): Found;
  ofLock(lock: ImageLock): Found;
  ofSbom(name: string, digest: string, text: string): Found;
}

function openScanner(): Scanner {
  const ctHome = ctHomePath();
  if (!existsSync(databasePath(ctHome))) {
    return { ofNothing: () => ({}), ofLock: () => ({}), ofSbom: () => ({}), [Symbol.dispose]: () => {} };
  }
  const database = new VulnDatabase(ctHome);
  const { stale, exceptions } = readScanConfig(policyDirectory({ ctHome, env: process.env }));
  const scan = (name: string, digest: string, sbom: SbomPackages): Found => {
    try {
      const options = { image: { name, digest }, sbom, exceptions, stale, now: new Date() };
      return { findings: scanWithDatabase(database, options).result.findings };
    } catch (error) {
      // Too old, or without a feed of what is in it: nothing can be said, and the rest of the comparison can.
      if (error instanceof CtError && error.code.startsWith('VULN_DB_')) return {};
      throw error;
    }
  };
  return {
    ofNothing: () => ({ findings: [] }),
    ofLock: (lock) => scan(lock.name, '', packagesOfLock(lock)),
    ofSbom: (name, digest, text) => scan(name, digest, packagesOfSbom(text)),
    [Symbol.dispose]: () => database[Symbol.dispose](),
  };
}

async function readFromGit(revisionAndPath: string): Promise<string> {
  if (!/^[A-Za-z0-9_][^:\s]*:[^\s:]+$/.test(revisionAndPath)) {
    throw new CtError('USAGE', `\`git:${revisionAndPath}\` is not of the form git:REVISION:PATH`, {
      hint: 'such as git:main:.ct/images/ci.lock.json; the path counts from the root of the repository',
    });
  }
  try {
    const bytes = await runProgram({
      file: 'git',
      args: ['show', '--no-textconv', '--end-of-options', revisionAndPath],
      maxOutputBytes: MAX_LOCK_BYTES,
      failureCode: 'IMAGE_NOT_FOUND',
    });
    return bytes.toString('utf8');
  } catch (error) {
    throw new CtError('IMAGE_NOT_FOUND', `there is no lock git:${revisionAndPath}: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
