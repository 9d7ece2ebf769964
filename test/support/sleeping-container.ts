/** A container of `ct bench workload` that would run for minutes. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BenchContainers } from '../../src/host/bench-container.ts';
import { makeWorkloadDirectory } from '../../src/host/bench-workload.ts';
import { ImageStore } from '../../src/image/store.ts';

/** Containers in a directory of this process, and a tree for them. */
export async function openContainers(
  ctHome: string,
  signal: AbortSignal,
  cleanup: AsyncDisposableStack,
): Promise<{ readonly containers: BenchContainers; readonly tree: string; readonly directory: string }> {
  const directory = makeWorkloadDirectory(ctHome);
  cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
  const images = new ImageStore(ctHome);
  const image = await images.manifest((await images.find('debian-12'))?.digest ?? '');
  const containers = await BenchContainers.open({
    ...{ ctHome, directory, image, signal, cpus: 1, memoryMib: 256 },
    rootfsPath: await images.checkedBlobPath(image.rootfs),
    onProgress: () => {},
  });
  cleanup.use(containers);
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  writeFileSync(join(tree, 'workload.sh'), 'touch /workspace/started; sleep 300');
  await containers.adopt(tree);
  return { containers, tree, directory };
}

/**
 * Returns when the workload runs. `sample` settles when it has ended, which `signal` can bring about; `cleanup` then
 * removes the rest.
 */
export async function sleepingContainer(
  ctHome: string,
  signal: AbortSignal,
  cleanup: AsyncDisposableStack,
): Promise<{ readonly sample: Promise<unknown> }> {
  const { containers, tree, directory } = await openContainers(ctHome, signal, cleanup);
  const sample = containers.sample(tree);
  let failure: unknown;
  sample.catch((error) => {
    failure = error;
  });
  const started = (): boolean =>
    readdirSync(directory).some((name) => existsSync(join(directory, name, 'workspace/started')));
  for (let attempt = 0; !started(); attempt++) {
    assert.ok(failure === undefined && attempt < 1000, `the container does not start: ${failure}`);
    await sleep(20);
  }
  return { sample };
}
