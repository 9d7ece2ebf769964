/** What a job wrote is found nowhere after it: not on the disk that held its volume, not in shared memory. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cpSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { findHost } from '../../src/host/client.ts';
import { stopHost } from '../support/host.ts';
import { testHome, testImage } from '../support/images.ts';
import { fileContains, loopDisk, loopDiskObstacle } from '../support/loop-disk.ts';
import { CIPHER, makeVmm } from '../support/machines.ts';
import { descendantsOf } from '../support/processes.ts';
import { runCt } from '../support/run-ct.ts';
import { scratchDirectory } from '../support/scratch.ts';

const options = loopDiskObstacle === undefined ? {} : { skip: loopDiskObstacle };
before(async () => {
  await testImage('debian-12');
});

/** What the host holds of a volume in memory would never reach the disk once the file is gone: write it while it is there. */
function writeBack(mountPoint: string): void {
  execFileSync('sync', ['-f', mountPoint]);
}

/** The job puts the marker together itself, so that it is in no argument, log or request. */
function marker(): { halves: [string, string]; bytes: Buffer; script: string } {
  const halves: [string, string] = [randomBytes(12).toString('hex'), randomBytes(12).toString('hex')];
  const script = `for d in /workspace /tmp /var/tmp "$HOME" /dev/shm; do
    for i in 1 2 3 4 5 6 7 8; do printf '%s%s\\n' "$A" "$B" >> $d/file; done
    mkdir -p "$d/$A$B"
  done; sync`;
  return { halves, bytes: Buffer.from(halves.join('')), script };
}

for (const [cipher, found] of [
  [CIPHER, false],
  ['none', true], // the control: the search finds what an unencrypted volume leaves behind
] as const) {
  test(
    `with the cipher ${cipher} the job's bytes are ${found ? '' : 'not '}on the disk`,
    options,
    async () => {
      using directory = scratchDirectory();
      using disk = loopDisk(directory.path, 1024);
      const { halves, bytes, script } = marker();
      {
        await using vmm = await makeVmm({ volumeMib: 512 }, { volumeDirectory: disk.mountPoint });
        await using guest = await vmm.clone({ cipher });
        const [A, B] = halves;
        const { result, err } = await guest.sh(script, {
          env: { ...guest.manifest.env, HOME: guest.manifest.user.home, A, B },
        });
        assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false }, err);
        writeBack(disk.mountPoint);
      }
      assert.deepEqual(readdirSync(disk.mountPoint), ['lost+found']);
      disk.unmount();
      assert.equal(disk.contains(bytes), found);
    },
  );
}

test(
  "after ct run no process, socket, file or mount is left, and the job's bytes are nowhere",
  options,
  async () => {
    using scratch = scratchDirectory();
    using disk = loopDisk(scratch.path, 4096);
    const home = join(disk.mountPoint, 'home');
    // The image, so that it need not be built again.
    for (const part of ['blobs', 'images'])
      cpSync(join(testHome, part), join(home, part), { recursive: true });
    const tree = join(scratch.path, 'tree');
    mkdirSync(tree);
    const env = { CT_HOME: home, XDG_RUNTIME_DIR: '' };
    const { halves, bytes, script } = marker();
    const [A, B] = halves;
    const args = [
      'run',
      '--memory',
      '512M',
      '-e',
      `A=${A}`,
      '-e',
      `B=${B}`,
      '--',
      'sh',
      '-c',
      `${script}; sleep 2`,
    ];
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(() => stopHost(home));
    const writingBack = setInterval(() => writeBack(disk.mountPoint), 300);
    const outcome = await runCt(args, { cwd: tree, env }).finally(() => clearInterval(writingBack));
    assert.equal(outcome.status, 0, outcome.stderr);

    const host = await findHost(home);
    assert.ok(host);
    const { pid, runningJobs, warm } = await host.info();
    // The VM of the job is gone; what runs waits for the next one and has seen nothing of this.
    assert.equal(runningJobs, 0);
    const vmms = descendantsOf(pid).filter(({ name }) => name.startsWith('qemu'));
    assert.ok(vmms.length <= warm + 1, `${vmms.length} VMMs, ${warm} of them warm`); // and one that is being filled
    assert.deepEqual(readdirSync(join(home, 'scratch')), []);
    await stopHost(home);
    // Unmounting fails if any process still holds a file there.
    disk.unmount();
    assert.equal(disk.contains(bytes), false);
    // The control of the search itself: something that is certainly there.
    assert.equal(disk.contains(Buffer.from('ct-guest')), true);
    for (const name of readdirSync('/dev/shm')) {
      const path = join('/dev/shm', name);
      if (statSync(path).isFile()) assert.equal(fileContains(path, bytes), false, path);
    }
  },
);
