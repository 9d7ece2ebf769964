/** A VM gets what its job asked for, and no more: of processors, of memory, of tasks. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { launcherPath } from '../../src/core/install.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { connectHost } from '../../src/host/client.ts';
import type { JobRequest, RunEvent } from '../../src/protocol/run.ts';
import { type Cgroup, CgroupTree } from '../../src/vmm/cgroup.ts';
import { cgroupOptions } from '../../src/vmm/process.ts';
import { borrowImages } from '../support/borrowed-home.ts';
import {
  cgroupOf,
  cpuSeconds,
  lacking,
  setCpuLimit,
  setMemoryLimitAbovePresentUse,
  testCgroups,
} from '../support/cgroups.ts';
import { stopHost } from '../support/host.ts';
import { testImage } from '../support/images.ts';
import { makeVmm } from '../support/machines.ts';
import { scratchDirectory } from '../support/scratch.ts';

const MIB = 1024 * 1024;
const MEASURE_MS = 2000;
const BUSY = 'for i in 1 2 3 4; do (while :; do :; done) & done; echo busy; sleep 60';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());
const skipCpu = await lacking(scratch, 'cpu');
const skipMemory = await lacking(scratch, 'memory');
const skipPids = await lacking(scratch, 'pids');
const skipAny = skipCpu && skipMemory && skipPids;

/** Processors that a process keeps busy, on average. */
async function cpusUsed(pid: number): Promise<number> {
  const [used, startedAt] = [cpuSeconds(pid), performance.now()];
  await sleep(MEASURE_MS);
  return ((cpuSeconds(pid) - used) * 1000) / (performance.now() - startedAt);
}

function versionOf(tree: CgroupTree, wanted: string): 1 | 2 {
  const version = tree.controllers.find(({ controller }) => controller === wanted)?.version;
  assert.ok(version);
  return version;
}

test('a job of 1 cpu that keeps 4 loops busy gets 1 cpu of the host, whatever its VMM has; the control: with a higher limit it gets more', {
  skip: skipCpu || (availableParallelism() < 2 && 'this machine has one cpu'),
}, async () => {
  await using cgroups = await testCgroups(scratch);
  // Two vCPUs, so that it is the host's limit that holds, and not the number of vCPUs.
  await using vmm = await makeVmm({ cpus: 2, memoryMib: 256, volumeMib: 512 }, { cgroups });
  await using guest = await vmm.clone();
  const directory = cgroupOf(guest.pid, cgroups, 'cpu');
  const { promise: busy, resolve: onOutput } = Promise.withResolvers<void>();
  void guest.sh(BUSY, { onOutput: () => onOutput() }).catch(() => {}); // it ends with the VM
  const version = versionOf(cgroups, 'cpu');
  await busy;
  const unlimited = await cpusUsed(guest.pid);
  setCpuLimit(directory, version, 1.1);
  const limited = await cpusUsed(guest.pid);
  assert.ok(limited < 1.25, `limited to 1.1 cpus, it used ${limited}`);
  // On a busy machine it would not have got more anyway; so the limit must also hold where it would.
  setCpuLimit(directory, version, 0.2);
  const squeezed = await cpusUsed(guest.pid);
  assert.ok(squeezed < 0.3, `limited to 0.2 cpus, it used ${squeezed}`);
  assert.ok(
    unlimited > 1.5 * squeezed,
    `2 vCPUs used ${unlimited} cpus, and ${squeezed} when limited to 0.2`,
  );
  const throttled = /^nr_throttled (\d+)$/m.exec(readFileSync(join(directory, 'cpu.stat'), 'utf8'))?.[1];
  assert.ok(Number(throttled) > 0, 'the kernel held it back');
});

test('a job of 1 cpu and 256 MiB: its VMM is limited to that and its own needs, and lives through a job that uses all of it', {
  skip: skipCpu || skipMemory || skipPids,
}, async () => {
  await using cgroups = await testCgroups(scratch);
  await using vmm = await makeVmm({ cpus: 1, memoryMib: 256, volumeMib: 1024 }, { cgroups });
  await using guest = await vmm.clone();
  const memory = cgroupOf(guest.pid, cgroups, 'memory');
  const read = (file: string): number => Number(readFileSync(join(memory, file), 'utf8'));
  const isV2 = versionOf(cgroups, 'memory') === 2;
  const limit = read(isV2 ? 'memory.max' : 'memory.limit_in_bytes');
  assert.ok(limit >= 256 * MIB && limit <= 640 * MIB, `${limit / MIB} MiB for a guest of 256`);
  if (isV2) assert.equal(read('memory.swap.max'), 0);
  else assert.equal(read('memory.memsw.limit_in_bytes'), limit, 'no swap');
  const cpu = cgroupOf(guest.pid, cgroups, 'cpu');
  if (versionOf(cgroups, 'cpu') === 2)
    assert.equal(readFileSync(join(cpu, 'cpu.max'), 'utf8'), '110000 100000\n');
  else assert.equal(readFileSync(join(cpu, 'cpu.cfs_quota_us'), 'utf8'), '110000\n');
  assert.ok(Number(readFileSync(join(cgroupOf(guest.pid, cgroups, 'pids'), 'pids.max'), 'utf8')) < 256);

  const { out: seen } = await guest.sh("awk '/MemTotal/ {print $2}' /proc/meminfo");
  assert.ok(Number(seen) > 0 && Number(seen) * 1024 < 256 * MIB, `the guest sees ${seen} KiB`);
  // Page cache of a volume that is written counts, too: it must be given up, not kill the VM.
  const { result } = await guest.sh(
    'dd if=/dev/zero of=big bs=1M count=500 2>/dev/null && sync && cat big >/dev/null',
  );
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
  // More memory than there is: the guest's kernel ends the process, and says so.
  const greedy = await guest.sh('exec perl -e \'my @x; push @x, "x" x (1 << 24) for 1..40\'');
  assert.ok(greedy.result.kind !== 'failed' && greedy.result.oomKilled);
  const peak = read(isV2 ? 'memory.peak' : 'memory.max_usage_in_bytes');
  assert.ok(peak <= limit, `${peak} > ${limit}`);
  const { out: alive } = await guest.sh('echo alive');
  assert.equal(alive, 'alive\n');
});

/** Runs a program in a cgroup as a VMM runs: what a guest that has taken over its VMM could do. */
async function runIn(
  cgroup: Cgroup,
  script: string,
): Promise<{ out: string; signal: NodeJS.Signals | null }> {
  const child = spawn(
    launcherPath,
    ['exec', ...cgroupOptions(cgroup), '--harden', '--', '/usr/bin/python3', '-c', script],
    { stdio: ['ignore', 'pipe', 'ignore'], env: {} },
  );
  let out = '';
  child.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString();
  });
  const [, signal] = await once(child, 'close');
  return { out, signal };
}

test('a VMM that is taken over gets no more memory: the kernel kills it, and we know why', {
  skip: skipMemory,
}, async () => {
  await using cgroups = await testCgroups(scratch);
  const limits = { memoryMib: 64, pids: 64 };
  const cgroup = cgroups.create('vmm', limits);
  assert.ok(cgroup);
  const allocate = (mib: number): string => `x = bytearray(${mib} << 20); print(len(x))`;
  assert.equal((await runIn(cgroup, allocate(200))).signal, 'SIGKILL');
  assert.equal(cgroup.hitMemoryLimit(), true);
  await cgroup.remove();
  await cgroup.remove(); // idempotent
  const control = cgroups.create('vmm', { ...limits, memoryMib: 512 });
  assert.ok(control);
  assert.deepEqual(await runIn(control, allocate(200)), { out: `${200 * MIB}\n`, signal: null });
  assert.equal(control.hitMemoryLimit(), false);
  await control.remove();
});

test('a VMM that is taken over starts no more tasks than its limit', { skip: skipPids }, async () => {
  await using cgroups = await testCgroups(scratch);
  const fork = `
import os, time
made = 0
for _ in range(40):
    try: pid = os.fork()
    except OSError as error: print(error.strerror, made); break
    if pid == 0: time.sleep(60); os._exit(0)
    made += 1
`;
  const cgroup = cgroups.create('vmm', { memoryMib: 256, pids: 12 });
  assert.ok(cgroup);
  const running = runIn(cgroup, fork.replace('time.sleep(60)', 'time.sleep(1)'));
  assert.match((await running).out, /^Resource temporarily unavailable 11$/m);
  await cgroup.remove();
});

test('what a killed daemon left in its cgroups is ended and removed by the next, and nothing else is', {
  skip: skipAny,
}, async () => {
  const options = { id: `test-${process.pid}-crash`, recordPath: join(scratch.path, 'crashed.json') };
  const crashed = await CgroupTree.open(options);
  const directories = crashed.controllers.flatMap(({ directory }) => directory ?? []);
  const cgroup = crashed.create('vmm', { memoryMib: 256, pids: 64 });
  assert.ok(cgroup);
  const left = spawn(launcherPath, ['exec', ...cgroupOptions(cgroup), '--', '/usr/bin/sleep', '60'], {
    stdio: 'ignore',
  });
  const bystander = spawn('/usr/bin/sleep', ['60'], { stdio: 'ignore' });
  try {
    const exited = once(left, 'exit');
    while (!readFileSync(cgroup.procs[0] ?? '', 'utf8').includes(`${left.pid}\n`)) await sleep(5);
    await using next = Object.assign(await CgroupTree.open(options), {
      [Symbol.asyncDispose]: () => next.close(),
    });
    assert.deepEqual(await exited, [null, 'SIGKILL']);
    for (const directory of directories)
      assert.deepEqual(
        readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory()),
        [],
      );
    assert.equal(bystander.exitCode ?? bystander.signalCode, null);
  } finally {
    left.kill('SIGKILL');
    bystander.kill('SIGKILL');
  }
  for (const directory of directories) assert.equal(existsSync(directory), false, directory);
  assert.equal(existsSync(options.recordPath), false);
});

function requestOf(image: string, script: string): JobRequest {
  return {
    name: 'limits',
    image,
    cpus: 1,
    memoryMib: 256,
    diskMib: 512,
    env: {},
    steps: [
      { name: 'step', argv: ['sh', '-c', script], env: {}, workingDirectory: '.', condition: 'success' },
    ],
    timeoutMs: 60_000,
    artifacts: [],
    sendsTree: false,
  };
}

test('a run whose VMM hits the memory limit ends with VMM_DIED and that reason, one that uses up the guest with a hint; daemon and cgroups leave together', {
  skip: skipMemory,
}, async () => {
  const ctHome = join(scratch.path, 'home');
  mkdirSync(ctHome, { mode: 0o700 });
  const image = await testImage('debian-12');
  await borrowImages(ctHome);
  const host = await connectHost({ ctHome });
  try {
    const { cgroups, pid } = await host.info();
    const memory = cgroups.find(({ controller }) => controller === 'memory');
    assert.ok(memory?.directory && memory.version);
    const { directory, version } = memory;
    const vmms = (): string[] => readdirSync(directory).filter((name) => name.startsWith('vmm-'));
    // The guest's own memory is another matter: that is the job's failure, with a hint that says so.
    const events: RunEvent[] = [];
    const greedy = await host.runJob(
      requestOf(image, 'exec perl -e \'my @x; push @x, "x" x (1 << 24) for 1..40\''),
      {
        signal: AbortSignal.timeout(50_000),
        onEvent: (event) => void events.push(event),
        onOutput: () => {},
      },
    );
    assert.equal(greedy.outcome, 'failure', JSON.stringify(greedy));
    const end = events.find(({ type }) => type === 'step-end');
    assert.match(
      end?.type === 'step-end' ? (end.hint ?? '') : '',
      /the job ran out of memory, it has 256 ?M.*resources\.memory/,
    );
    const result = await host.runJob(
      requestOf(
        image,
        'echo go; sleep 1; exec perl -e \'my @x; push @x, "x" x (1 << 20) for 1..120; sleep 5\'',
      ),
      {
        signal: AbortSignal.timeout(50_000),
        onEvent: () => {},
        onOutput: (): undefined => {
          // The job runs: from now on its VMM has next to nothing left.
          for (const name of vmms()) setMemoryLimitAbovePresentUse(join(directory, name), version, 4);
        },
      },
    );
    assert.equal(result.outcome, 'infrastructure');
    assert.equal(result.error?.code ?? result.outcome, 'VMM_DIED', JSON.stringify(result.error));
    assert.match(result.error?.message ?? '', /it reached the \d+ MiB of its VM/);
    await stopHost(ctHome);
    while (existsSync(`/proc/${pid}`)) await sleep(20);
    for (const status of cgroups)
      if (status.directory !== undefined) assert.equal(existsSync(status.directory), false, status.directory);
  } finally {
    await stopHost(ctHome);
    rmSync(await socketDirectory(ctHome), { recursive: true, force: true });
  }
});
