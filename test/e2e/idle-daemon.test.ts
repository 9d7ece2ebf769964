/** A daemon that leaves because it has nothing to do is started again for whoever comes late. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectHost } from '../../src/host/client.ts';
import { borrowImages } from '../support/borrowed-home.ts';
import { stopHost } from '../support/host.ts';
import { testImage } from '../support/images.ts';
import { isAlive } from '../support/processes.ts';
import { scratchDirectory } from '../support/scratch.ts';

test('a job that is sent after the daemon has left runs in the next one', async () => {
  using scratch = scratchDirectory();
  const image = await testImage('debian-12');
  await borrowImages(scratch.path);
  process.env['CT_HOST_IDLE_SECONDS'] = '1';
  const client = await connectHost({ ctHome: scratch.path });
  const { pid } = client.greeting;
  while (isAlive(pid)) await sleep(50);
  process.env['CT_HOST_IDLE_SECONDS'] = '60';
  try {
    const result = await client.runJob(
      {
        name: 'late',
        image,
        cpus: 1,
        memoryMib: 512,
        diskMib: 256,
        env: {},
        steps: [{ name: 'true', argv: ['true'], env: {}, workingDirectory: '', condition: 'success' }],
        timeoutMs: 60_000,
        artifacts: [],
        sendsTree: false,
      },
      { onEvent: () => {}, onOutput: () => {}, signal: new AbortController().signal },
    );
    assert.deepEqual(result, { outcome: 'success', exitCode: 0 });
    assert.notEqual((await client.info()).pid, pid);
  } finally {
    await stopHost(scratch.path);
  }
});
