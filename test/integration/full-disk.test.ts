/** The file system of CT_HOME is full: before a VM exists, and while one runs. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { testImage } from '../support/images.ts';
import { type LoopDisk, loopDisk, loopDiskObstacle } from '../support/loop-disk.ts';
import { makeMachines, makeVmm } from '../support/machines.ts';
import { scratchDirectory } from '../support/scratch.ts';

const options = loopDiskObstacle === undefined ? {} : { skip: loopDiskObstacle };
let image = '';
before(async () => {
  image = await testImage('debian-12');
});

function fill(disk: LoopDisk): void {
  for (let size = 4 * 1024 * 1024; size >= 4096; size /= 2) {
    for (let i = 0; ; i++) {
      try {
        writeFileSync(join(disk.mountPoint, `fill-${size}-${i}`), Buffer.alloc(size, 1));
      } catch {
        break;
      }
    }
  }
  execFileSync('sync', ['-f', disk.mountPoint]);
}

test(
  'a claim rejects with STORE_FULL, leaves nothing, and works when there is space again',
  options,
  async () => {
    using directory = scratchDirectory();
    using disk = loopDisk(directory.path, 48);
    fill(disk);
    const machines = makeMachines(disk.mountPoint);
    const shape = { image, cpus: 1, memoryMib: 256, volumeMib: 256 };
    await assert.rejects(
      machines.claim(shape, () => {}),
      { code: 'STORE_FULL' },
    );
    assert.deepEqual(readdirSync(join(disk.mountPoint, 'scratch')), []);
    for (const name of readdirSync(disk.mountPoint)) {
      if (name.startsWith('fill-')) rmSync(join(disk.mountPoint, name));
    }
    const { machine } = await machines.claim(shape, () => {});
    await machine.probe();
    await machine.destroy();
    await machines.close();
  },
);

test(
  'a job whose volume finds no space on the host gets I/O errors, and its VM can be destroyed',
  options,
  async () => {
    using directory = scratchDirectory();
    using disk = loopDisk(directory.path, 48);
    await using vmm = await makeVmm({ volumeMib: 512 }, { volumeDirectory: disk.mountPoint });
    {
      await using guest = await vmm.clone();
      fill(disk);
      const { result, err } = await guest.sh('dd if=/dev/zero of=big bs=1M count=100 conv=fsync');
      assert.notDeepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
      assert.match(err, /Input\/output error|No space left|Read-only file system/);
      const { out } = await guest.sh('echo alive');
      assert.equal(out, 'alive\n');
    }
    disk.unmount(); // fails if the VM still held its volume
  },
);
