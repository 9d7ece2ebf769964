/** The yardstick of `ct bench start --vs runc`: the same program in a container, by the runtime itself. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { probePath } from '../core/install.ts';
import { runProgram } from '../core/run-program.ts';

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
  const runc = (args: readonly string[]): Promise<Buffer> =>
    runProgram({ file: 'runc', args, maxOutputBytes: 65_536, failureCode: 'REQUIREMENT_MISSING' });
  const [version = 'runc'] = (await runc(['--version'])).toString().split('\n');
  const rootless = process.getuid?.() === 0 ? [] : ['--rootless'];
  await runc(['spec', ...rootless, '--bundle', bundle]);
  const configPath = join(bundle, 'config.json');
  const config = JSON.parse(readFileSync(configPath, 'utf8')) as { process: Record<string, unknown> };
  Object.assign(config.process, { terminal: false, args: ['/probe'] });
  writeFileSync(configPath, JSON.stringify(config));

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
