/** The apt of a build: its sources, its cache, and its package lists, fetched. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Apt } from './apt.ts';
import type { PackageCache } from './package-cache.ts';
import type { BuildProgress } from './progress.ts';
import { findSources, readAptMachine } from './sources.ts';

export interface AptContext {
  readonly suite: string;
  readonly cache: PackageCache;
  /** `<CT_HOME>/cache`. */
  readonly cacheDirectory: string;
  /** For this build alone. */
  readonly workDirectory: string;
  readonly progress: (event: BuildProgress) => void;
  readonly signal: AbortSignal | undefined;
}

/** Only while no other build of the CT_HOME runs. Throws IMAGE_SOURCES_MISSING, IMAGE_BUILD_FAILED, CANCELLED. */
export async function openApt(context: AptContext): Promise<Apt> {
  const { suite, cache, cacheDirectory, signal, progress } = context;
  progress({ phase: 'resolving', message: "reading this machine's apt sources" });
  const sources = await findSources(suite, { env: process.env, signal });
  const machine = await readAptMachine(signal);
  const workDirectory = join(context.workDirectory, 'apt');
  mkdirSync(workDirectory);
  const listsDirectory = join(cacheDirectory, 'apt/lists');
  const apt = new Apt({ cache, listsDirectory, workDirectory, sources, machine, signal, progress });
  await apt.update();
  return apt;
}
