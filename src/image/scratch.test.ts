import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mountOptions } from './scratch.ts';

const MOUNTINFO = [
  '22 1 254:0 / / rw,relatime - ext4 /dev/vda rw',
  '23 22 0:5 / /dev rw,nosuid - devtmpfs devtmpfs rw',
  '24 23 0:22 / /dev/shm rw,nosuid,nodev,noexec - tmpfs shm rw',
  '25 22 0:30 / /mnt/with\\040space rw,noexec - tmpfs x rw',
  '26 22 0:31 / /mnt/with\\040space rw,nodev - tmpfs y rw',
].join('\n');

test('the options are those of the innermost mount, and of the last on the same point', () => {
  assert.deepEqual(mountOptions(MOUNTINFO, '/dev/shm/x'), ['rw', 'nosuid', 'nodev', 'noexec']);
  assert.deepEqual(mountOptions(MOUNTINFO, '/dev/shmx'), ['rw', 'nosuid']);
  assert.deepEqual(mountOptions(MOUNTINFO, '/var/tmp'), ['rw', 'relatime']);
  assert.deepEqual(mountOptions(MOUNTINFO, '/mnt/with space/x'), ['rw', 'nodev']);
});
