/**
 * Entry of the host daemon: `daemon <ct home> <socket>`. Started by the CLI on demand, through the launcher, which holds
 * the lock that keeps a second daemon of the same CT_HOME away. Leaves after an idle time; SIGTERM waits for running
 * jobs, a second one does not. A kill -9 takes every VM with it (they die with their parent) and leaves no file.
 */
import { rmSync } from 'node:fs';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readAlertConfig } from '../audit/alert-config.ts';
import { alertDirectory } from '../audit/alert-file.ts';
import { Alerts } from '../audit/alerts.ts';
import { messageOf } from '../core/errors.ts';
import { homeId } from '../core/paths.ts';
import { PresetResolver } from '../egress/presets/index.ts';
import { ImageStore } from '../image/store.ts';
import { CgroupTree } from '../vmm/cgroup.ts';
import { Capacity, hostCapacity, VM_OVERHEAD_MIB } from './capacity.ts';
import { Dialer } from './dialer.ts';
import { ImageGate } from './image-gate.ts';
import { ImageWatch } from './image-watch.ts';
import { Link } from './link.ts';
import { Machines } from './machines.ts';
import { PolicyKeeper } from './policy.ts';
import { Runs } from './runs.ts';
import { HostServer } from './server.ts';

const DEFAULT_IDLE_SECONDS = 1800;
/** Longer idle times, `Infinity` among them, mean never: a service (setTimeout would fire at once). */
const MAX_TIMER_MS = 2 ** 31 - 1;
/** Part of the memory for VMs that idle ones may take. */
const WARM_SHARE = 0.05;

/** Idle for this long, the daemon removes runs that are too old or too many. */
const RETENTION_DELAY_MS = 3000;

async function main(): Promise<void> {
  const [ctHome, socketPath] = process.argv.slice(2);
  if (ctHome === undefined || socketPath === undefined) throw new Error('usage: daemon <ct home> <socket>');
  const idleMs = Number(process.env['CT_HOST_IDLE_SECONDS'] ?? DEFAULT_IDLE_SECONDS) * 1000;

  const scratchDirectory = join(ctHome, 'scratch');
  const linksDirectory = join(ctHome, 'links');
  for (const directory of [scratchDirectory, linksDirectory]) {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    // We hold the lock of this CT_HOME: whatever lies here was left by a daemon that was killed.
    for (const name of await readdir(directory)) await rm(join(directory, name), { recursive: true });
  }

  const total = hostCapacity();
  const cgroups = await CgroupTree.open({ id: homeId(ctHome), recordPath: join(ctHome, 'cgroups.json') });
  for (const { controller, reason } of cgroups.controllers) {
    if (reason !== undefined) process.stderr.write(`ct host: no ${controller} limits for VMs: ${reason}\n`);
  }
  const images = new ImageStore(ctHome);
  const machines = new Machines({
    ctHome,
    images,
    scratchDirectory,
    linksDirectory,
    cgroups,
    maxWarm: Math.floor((total.memoryMib * WARM_SHARE) / VM_OVERHEAD_MIB),
  });
  // Under the lock, too: whatever had not ended was interrupted.
  const runs = new Runs({
    ctHome,
    newLink: () => new Link({ scratchDirectory: linksDirectory, cgroups }),
    onSetAside: (why) => process.stderr.write(`ct host: the record of runs begins anew: ${why}\n`),
    onWriteError: (error) => process.stderr.write(`ct host: a run is not recorded: ${messageOf(error)}\n`),
  });
  const complain = (message: string): void => void process.stderr.write(`ct host: ${message}\n`);
  const presets = new PresetResolver();
  const alerts = new Alerts(alertDirectory(ctHome), { config: { webhooks: [] }, onProblem: complain });
  const policy = new PolicyKeeper({
    ctHome,
    env: process.env,
    presets,
    progress: complain,
    onLoad: (directory) =>
      alerts.configure(directory === undefined ? { webhooks: [] } : readAlertConfig(directory)),
  });
  const imageGate = new ImageGate({ ctHome, images });
  const imageWatch = new ImageWatch({
    ctHome,
    gate: imageGate,
    policy,
    machines,
    alerts,
    onProblem: (error) => complain(messageOf(error)),
  });
  // Alerts that an earlier daemon left go on their way; what is wrong with the policy, the first job hears.
  void policy.current().catch((error) => complain(messageOf(error)));
  let idleTimer: NodeJS.Timeout | undefined;
  let retentionTimer: NodeJS.Timeout | undefined;
  const whenIdle = (busy: boolean): void => {
    clearTimeout(idleTimer);
    clearTimeout(retentionTimer);
    if (busy) return;
    if (idleMs <= MAX_TIMER_MS) idleTimer = setTimeout(() => void leave(), idleMs);
    retentionTimer = setTimeout(() => {
      // What cannot be removed is tried again when the daemon is next idle.
      runs.retain().catch((error) => {
        process.stderr.write(`ct host: old runs were not removed: ${messageOf(error)}\n`);
      });
    }, RETENTION_DELAY_MS);
  };
  const server = new HostServer({
    ctHome,
    machines,
    capacity: new Capacity(total),
    runs,
    policy,
    presets,
    alerts,
    imageGate,
    imageWatch,
    dialer: new Dialer(),
    onActivity: whenIdle,
    onShutdown: () => void leave(),
  });

  let leaving = false;
  const leave = async (): Promise<void> => {
    if (leaving) process.exit(1);
    leaving = true;
    // First the name: a client that comes now starts a new daemon, which waits for our lock.
    rmSync(socketPath, { force: true });
    server.http.close();
    await server.drained();
    await sealing;
    await imageWatch.close();
    runs.close();
    await alerts.close();
    await machines.close();
    await cgroups.close();
    process.exit(0);
  };
  process.on('SIGTERM', () => void leave());
  process.on('SIGINT', () => void leave());
  process.on('SIGHUP', () => {});

  rmSync(socketPath, { force: true });
  process.umask(0o177);
  const sealing = runs.sealInterrupted();
  server.http.listen(socketPath, () => {
    process.umask(0o077);
    whenIdle(false);
    process.stdout.write('listening\n');
  });
  server.http.on('error', fail);
}

function fail(error: unknown): void {
  process.stderr.write(`ct host: ${messageOf(error)}\n`);
  process.exit(1);
}

main().catch(fail);
