/**
 * Cgroups on a host that has v2 alone, which this machine need not be: the code runs as PID 1 of a VM, on Debian's
 * kernel, from an initramfs with nothing else in it. (What cgroups do to VMs: test/security/resource-limits.test.ts.)
 */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { installRoot, launcherPath } from '../../src/core/install.ts';
import { encodeCpio } from '../../src/image/cpio.ts';
import { ImageStore } from '../../src/image/store.ts';
import { QEMU_PATH } from '../../src/vmm/qemu/version.ts';
import { testHome, testImage } from '../support/images.ts';
import { scratchDirectory } from '../support/scratch.ts';

const INIT = `#!/usr/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo '+cpu +memory +pids +io' >/sys/fs/cgroup/cgroup.subtree_control
/usr/bin/mkdir /sys/fs/cgroup/svc
echo 0 >/sys/fs/cgroup/svc/cgroup.procs
exec /node --disable-warning=ExperimentalWarning /ct/test/fixtures/cgroup-v2-guest.ts </dev/null
`;

/** The libraries a program is linked with, and its loader. */
function librariesOf(program: string): string[] {
  const output = execFileSync('ldd', [program]).toString();
  return [...output.matchAll(/(?:=> )?(\/\S+) \(0x/g)].map(([, path]) => path ?? '');
}

function initramfs(): Buffer {
  const files = new Map<string, string>([
    ['/node', process.execPath],
    ['/ct-launcher', launcherPath],
  ]);
  for (const name of ['sh', 'mount', 'mkdir', 'sleep', 'dd'])
    files.set(`/usr/bin/${name}`, `/usr/bin/${name}`);
  for (const program of [...files.values()])
    for (const library of librariesOf(program)) files.set(library, library);
  for (const path of [
    'package.json',
    'src/vmm/cgroup.ts',
    'src/core/errors.ts',
    'test/fixtures/cgroup-v2-guest.ts',
  ])
    files.set(`/ct/${path}`, join(installRoot, path));
  const parents = new Set<string>(['/proc', '/sys', '/dev']);
  for (const path of files.keys())
    for (let parent = dirname(path); parent !== '/'; parent = dirname(parent)) parents.add(parent);
  return encodeCpio([
    ...[...parents].sort().map((path) => ({ name: path.slice(1), mode: 0o040755, data: Buffer.alloc(0) })),
    { name: 'init', mode: 0o100755, data: Buffer.from(INIT) },
    ...[...files].map(([path, source]) => ({
      name: path.slice(1),
      mode: 0o100755,
      data: readFileSync(realpathSync(source)),
    })),
  ]);
}

async function bootedResult(): Promise<Record<string, unknown>> {
  using scratch = scratchDirectory();
  const store = new ImageStore(testHome);
  const { kernel } = await store.manifest(await testImage('debian-12'));
  const initrd = join(scratch.path, 'initrd');
  writeFileSync(initrd, initramfs());
  const vm = spawn(
    QEMU_PATH,
    [
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-serial', 'stdio'],
      ...['-M', 'q35', '-accel', 'tcg', '-cpu', 'max', '-m', '1024'],
      ...['-kernel', await store.checkedBlobPath(kernel), '-initrd', initrd],
      ...['-append', 'console=ttyS0 quiet panic=-1 mitigations=off'],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  let output = '';
  vm.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString();
  });
  try {
    await once(vm, 'close');
  } finally {
    vm.kill('SIGKILL');
  }
  const result = /^RESULT (.*)$/m.exec(output)?.[1];
  assert.ok(result, output);
  return JSON.parse(result);
}

test('on cgroup v2 the daemon moves into a leaf, limits, notices, removes and sweeps, and leaves as it came', async () => {
  const seen = await bootedResult();
  assert.equal(seen['error'], undefined);
  const own = '/sys/fs/cgroup/svc';
  const used = (directory: string): unknown =>
    ['cpu', 'memory', 'pids', 'io'].map((controller) => ({ controller, version: 2, directory }));
  for (const { reason } of seen['withOthers'] as { reason: string }[])
    assert.match(
      reason,
      /svc holds other processes \(1\), and a cgroup that holds processes cannot limit its children/,
    );
  assert.deepEqual(seen['statuses'], used(`${own}/ct-t`));
  assert.equal(seen['daemon'], '0::/svc/daemon');
  assert.deepEqual(seen['limits'], ['50000 100000', String(64 << 20), '0', '12', '1']);
  assert.deepEqual(seen['greedy'], [null, 'SIGKILL']);
  assert.deepEqual([seen['hitLimit'], seen['removed']], [true, true]);
  assert.deepEqual(seen['left'], [null, 'SIGKILL']);
  assert.deepEqual(seen['afterSweep'], ['daemon']);
  assert.deepEqual(seen['end'], ['0::/svc', [], '']);
});
