/** Where this installation keeps its parts: bundles in dist/<build>/ (or sources in src/), compiled C in build/. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { CtError } from './errors.ts';

/** Set by setup/bundle.sh to the hash of what was bundled; absent when run from TypeScript sources, as tests do. */
declare const CT_BUILD: string | undefined;
const build = typeof CT_BUILD === 'string' ? CT_BUILD : undefined;

export const installRoot: string = findRoot(import.meta.dirname);

function findRoot(directory: string): string {
  if (existsSync(join(directory, 'package.json'))) return directory;
  const parent = dirname(directory);
  if (parent === directory) throw new CtError('INTERNAL', 'no package.json above the program');
  return findRoot(parent);
}

/**
 * Path of a program's entry module, e.g. `host/daemon`: of this very build, also when a newer one has been made since.
 */
export function entryPoint(name: string): string {
  return build === undefined
    ? join(installRoot, 'src', `${name}.ts`)
    : join(installRoot, 'dist', build, `${name}.js`);
}

export const launcherPath: string = join(installRoot, 'build/launcher/ct-launcher');
export const guestAgentPath: string = join(installRoot, 'build/guest-agent/init');
export const probePath: string = join(installRoot, 'build/guest-agent/probe');

/** Identifies what is running: a daemon of another build is replaced. */
export function buildId(): string {
  return build ?? 'source';
}
