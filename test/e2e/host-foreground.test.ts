/** `ct host --foreground`, as deploy/systemd/ct-host.service starts it: with no more capabilities than that leaves. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { installRoot } from '../../src/core/install.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { findHost, type HostClient } from '../../src/host/client.ts';
import type { JobRequest, JobResult } from '../../src/protocol/run.ts';
import { borrowImages } from '../support/borrowed-home.ts';
import { testImage } from '../support/images.ts';
import { scratchDirectory } from '../support/scratch.ts';

const unit = readFileSync(join(installRoot, 'deploy/systemd/ct-host.service'), 'utf8');

/** The bounding set of the unit, by setpriv(1). */
function confined(command: readonly string[]): string[] {
  if (process.getuid?.() !== 0) return [...command]; // then there are no capabilities to take away
  const set = /^CapabilityBoundingSet=(.*)$/m.exec(unit)?.[1]?.toLowerCase().split(' ') ?? [];
  assert.ok(set.length > 5);
  const bounding = ['-all', ...set.map((name) => `+${name.replace('cap_', '')}`)].join(',');
  return ['setpriv', '--no-new-privs', '--bounding-set', bounding, ...command];
}

function startHost(ctHome: string): { readonly child: ChildProcess; readonly stderr: () => string } {
  const [file = '', ...args] = confined([
    process.execPath,
    '--disable-warning=ExperimentalWarning',
    join(installRoot, 'src/cli/main.ts'),
    'host',
    '--foreground',
  ]);
  const env = { PATH: process.env['PATH'], HOME: process.env['HOME'], CT_HOME: ctHome };
  const child = spawn(file, args, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  return { child, stderr: () => stderr };
}

async function runShell(
  host: HostClient,
  image: string,
  script: string,
  onOutput = (): void => {},
): Promise<JobResult> {
  const step = {
    name: 'step',
    argv: ['sh', '-c', script],
    env: {},
    workingDirectory: '.',
    condition: 'success',
  } as const;
  const request: JobRequest = {
    name: 'service',
    image,
    cpus: 1,
    memoryMib: 256,
    diskMib: 512,
    env: {},
    steps: [step],
    timeoutMs: 60_000,
    artifacts: [],
    sendsTree: false,
  };
  return await host.runJob(request, {
    signal: AbortSignal.timeout(55_000),
    onEvent: () => {},
    onOutput: () => onOutput(),
  });
}

test('it is the process that was started, runs jobs, is the only one, and SIGTERM lets a job end', async () => {
  const image = await testImage('debian-12');
  using home = scratchDirectory();
  await borrowImages(home.path);
  const { child, stderr } = startHost(home.path);
  try {
    let host = await findHost(home.path);
    for (; !host; host = await findHost(home.path)) {
      assert.equal(child.exitCode, null, stderr());
      await sleep(50);
    }
    const { pid, cgroups } = await host.info();
    assert.equal(pid, child.pid);
    const second = startHost(home.path);
    const [status] = await once(second.child, 'close');
    assert.deepEqual([status, /runs already \(process (\d+)\)/.exec(second.stderr())?.[1]], [2, String(pid)]);

    const { promise: started, resolve } = Promise.withResolvers<void>();
    const running = runShell(host, image, 'echo started; sleep 2', resolve);
    await Promise.race([started, running]);
    child.kill('SIGTERM');
    const exited = once(child, 'exit');
    const result = await running;
    assert.equal(result.outcome, 'success', JSON.stringify(result));
    assert.deepEqual(await exited, [0, null], stderr());
    for (const { directory } of cgroups)
      assert.ok(directory === undefined || !existsSync(directory), `${directory} is gone`);
  } finally {
    child.kill('SIGKILL');
    rmSync(await socketDirectory(home.path), { recursive: true, force: true });
  }
});
