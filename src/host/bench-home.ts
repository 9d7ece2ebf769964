/** A CT_HOME of a benchmark's own, with a daemon and a policy of its own; images are those of another one. */
import { copyFileSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { socketDirectory } from '../core/paths.ts';
import { connectHost, findHost, type HostClient } from './client.ts';

/** What src/image/ keeps below CT_HOME. */
const IMAGE_DIRECTORIES = ['blobs', 'images', 'parts', 'checked'];
/** The verdict about KVM, which takes a boot to find. */
const VERDICT = 'accelerator.json';
const STOP_POLL_MS = 50;
const LEAVE_TIMEOUT_MS = 10_000;

export interface BenchHome extends AsyncDisposable {
  readonly host: HostClient;
  readonly socketPath: string;
}

/**
 * Makes the home in `directory`, which is private and has at most images, and starts its daemon. Jobs there may reach `name` at a
 * loopback address, on every port, and nothing else. Disposal ends the daemon; the files are the caller's to remove.
 */
export async function openBenchHome(options: {
  readonly directory: string;
  readonly imagesOf: string;
  readonly name: string;
  readonly signal: AbortSignal;
}): Promise<BenchHome> {
  const { directory, imagesOf, name, signal } = options;
  for (const part of IMAGE_DIRECTORIES) {
    if (existsSync(join(imagesOf, part)) && !existsSync(join(directory, part)))
      symlinkSync(join(imagesOf, part), join(directory, part));
  }
  if (existsSync(join(imagesOf, VERDICT))) copyFileSync(join(imagesOf, VERDICT), join(directory, VERDICT));
  mkdirSync(join(directory, 'policy'), { mode: 0o700 });
  writeFileSync(join(directory, 'policy/data.yml'), policyData(name), { mode: 0o600 });
  const sockets = await socketDirectory(directory);
  const stop = async (): Promise<void> => {
    const running = await findHost(directory);
    if (running) {
      const { pid } = await running.info();
      while (!(await running.shutdown())) await sleep(STOP_POLL_MS);
      // It still writes and removes files: whoever removes the home must not meet it there.
      const deadline = performance.now() + LEAVE_TIMEOUT_MS;
      while (existsSync(`/proc/${pid}`) && performance.now() < deadline) await sleep(STOP_POLL_MS);
    }
    rmSync(sockets, { recursive: true, force: true });
  };
  try {
    const host = await connectHost({ ctHome: directory, signal });
    return { host, socketPath: join(sockets, 'host.sock'), [Symbol.asyncDispose]: stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

function policyData(name: string): string {
  return `version: 1
egress:
  mode: enforce
  allow: ['*']
  resolve: {${name}: 127.0.0.1}
admission:
  trust: [local]
  repositories: ['*']
  refs: ['*']
  actors: ['*']
  images: ['*']
limits: {cpus: 1024, memory: 1T, disk: 1T, timeout: 1d}
`;
}
