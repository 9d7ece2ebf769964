/** The yardstick of `--vs runc`: what runs in a VM, in a container, by the runtime itself. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { probePath } from '../core/install.ts';
import { runProgram } from '../core/run-program.ts';

/** The parts of an OCI runtime configuration (runtime-spec, config.md) that the benchmarks change. */
export interface RuncConfig {
  readonly process: Record<string, unknown>;
  readonly root: Record<string, unknown>;
  readonly mounts: Record<string, unknown>[];
  readonly linux: Record<string, unknown>;
}

/** Whether this process may do what only root may: containers with another user, with limits, and mounts. */
export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/** `runc version 1.1.5`. Throws REQUIREMENT_MISSING: runc is not among what ct needs otherwise. */
export async function runcVersion(): Promise<string> {
  try {
    return (await runRunc(['--version'])).toString().split('\n')[0] ?? 'runc';
  } catch (error) {
    throw new CtError('REQUIREMENT_MISSING', 'there is no runc to compare with', {
      hint: 'install it (Debian: apt-get install runc), or leave out --vs',
      cause: error,
    });
  }
}

/** What `runc spec` writes for this user, who may be root or not; the caller writes config.json into `bundle`. */
export async function runcSpec(bundle: string): Promise<RuncConfig> {
  await runRunc(['spec', ...(isRoot() ? [] : ['--rootless']), '--bundle', bundle]);
  return JSON.parse(readFileSync(join(bundle, 'config.json'), 'utf8')) as RuncConfig;
}

/** A short command of runc to its end. Throws REQUIREMENT_MISSING with what it said. */
export function runRunc(args: readonly string[]): Promise<Buffer> {
  return runProgram({ file: 'runc', args, maxOutputBytes: 65_536, failureCode: 'REQUIREMENT_MISSING' });
}

export interface RuncBench extends Disposable {
  readonly version: string;
  /** `runc run` → first byte of the program, in ms; returns when the container is gone. */
  sample(): Promise<number>;
}

/**
 * A bundle as `runc spec` makes it (all its namespaces and mounts, a read-only root), with the probe as its only program.
 * Throws REQUIREMENT_MISSING without runc.
 */
export async function runcBench(directory: string): Promise<RuncBench> {
  const bundle = join(directory, 'runc');
  mkdirSync(join(bundle, 'rootfs'), { recursive: true });
  copyFileSync(probePath, join(bundle, 'rootfs/probe'));
  chmodSync(join(bundle, 'rootfs/probe'), 0o755);
  const version = await runcVersion();
  const config = await runcSpec(bundle);
  Object.assign(config.process, { terminal: false, args: ['/probe'] });
  writeFileSync(join(bundle, 'config.json'), JSON.stringify(config));

  let samples = 0;
  return {
    version,
    sample: async () => {
      const id = `ct-bench-${process.pid}-${samples++}`;
      const startedAt = performance.now();
      const child = spawn('runc', ['run', '--bundle', bundle, id], {
        stdio: ['ignore', 'pipe', 'inherit'],
        env: { PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin' },
      });
      const exited = once(child, 'close');
      const { stdout } = child;
      if (!stdout) throw new CtError('INTERNAL', 'runc has no stdout');
      let ms = Number.NaN;
      stdout.once('data', () => {
        ms = performance.now() - startedAt;
      });
      const [code] = await exited;
      if (code !== 0 || Number.isNaN(ms)) {
        throw new CtError('REQUIREMENT_MISSING', `\`runc run\` failed with exit code ${code}`, {
          hint: 'a container must be able to start here: try `runc run` by hand, as the same user',
        });
      }
      return ms;
    },
    [Symbol.dispose]: () => rmSync(bundle, { recursive: true, force: true }),
  };
}
