/** Where cgroups are looked for on hosts of every kind, and the reason where there are none. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { CgroupTree, type ControllerStatus, inspectCgroups } from '../../src/vmm/cgroup.ts';
import { scratchDirectory } from '../support/scratch.ts';

interface Host {
  readonly statuses: readonly ControllerStatus[];
  readonly path: (...names: string[]) => string;
}

/** A host whose /proc says `cgroup` and `mounts` (`$` is the scratch directory), and which has these files. */
function host(
  root: string,
  options: { cgroup: string[]; mounts: string[]; directories?: string[]; files?: Record<string, string> },
): Host {
  const path = (...names: string[]): string => join(root, ...names);
  const proc = path('proc');
  for (const directory of ['proc', ...(options.directories ?? [])])
    mkdirSync(path(directory), { recursive: true });
  for (const [name, text] of Object.entries(options.files ?? {})) writeFileSync(path(name), text);
  writeFileSync(path('proc/cgroup'), `${options.cgroup.join('\n')}\n`);
  writeFileSync(path('proc/status'), 'Name:\tnode\nPid:\t42\n');
  writeFileSync(
    path('proc/mountinfo'),
    options.mounts.map((line, i) => `${30 + i} 23 0:${i} ${line.replaceAll('$', root)}\n`).join(''),
  );
  return { statuses: inspectCgroups('id', { procSelf: proc }), path };
}

test('v2: in use below our own cgroup if it is alone there, and the probe leaves nothing', () => {
  using scratch = scratchDirectory();
  const files = {
    'cg/svc/cgroup.controllers': 'cpuset cpu io memory pids\n',
    'cg/svc/cgroup.procs': '42\n',
    'cg/svc/cgroup.type': 'domain\n',
  };
  const options = {
    cgroup: ['0::/svc'],
    mounts: ['/ $/cg rw - cgroup2 cgroup2 rw'],
    directories: ['cg/svc'],
  };
  const { statuses, path } = host(scratch.path, { ...options, files });
  for (const { version, directory } of statuses)
    assert.deepEqual([version, directory], [2, path('cg/svc/ct-id')]);
  assert.deepEqual(readdirSync(path('cg/svc')).sort(), ['cgroup.controllers', 'cgroup.procs', 'cgroup.type']);
  const shared = host(scratch.path, {
    ...options,
    files: { ...files, 'cg/svc/cgroup.procs': '7\n42\n43\n' },
  });
  for (const { version, reason } of shared.statuses) {
    assert.equal(version, undefined);
    assert.match(reason ?? '', /svc holds other processes \(2\)/);
  }
});

test('v1 and v2 side by side: each controller from the hierarchy that has it', () => {
  using scratch = scratchDirectory();
  const { statuses, path } = host(scratch.path, {
    cgroup: ['5:memory:/a', '4:cpu,cpuacct:/b', '3:pids:/', '0::/c'],
    mounts: [
      '/ $/memory rw - cgroup cgroup rw,memory',
      '/ $/cpu rw - cgroup cgroup rw,cpu,cpuacct',
      '/ $/unified rw - cgroup2 cgroup2 rw',
    ],
    directories: ['memory/a', 'cpu/b', 'unified/c'],
    files: {
      'unified/c/cgroup.controllers': 'pids',
      'unified/c/cgroup.procs': '42\n',
      'unified/c/cgroup.type': 'domain\n',
    },
  });
  assert.deepEqual(
    statuses.map(({ controller, version, directory }) => [controller, version, directory]),
    [
      ['cpu', 1, path('cpu/b/ct-id')],
      ['memory', 1, path('memory/a/ct-id')],
      ['pids', 2, path('unified/c/ct-id')],
      ['io', undefined, undefined],
    ],
  );
  assert.match(
    statuses.at(-1)?.reason ?? '',
    /has no io controller, and the v1 controller blkio is not mounted/,
  );
});

test('a container that sees a part of the tree: in use if that holds our cgroup, else the reason names both', () => {
  using scratch = scratchDirectory();
  const mounted = (root: string): readonly ControllerStatus[] =>
    host(scratch.path, {
      cgroup: ['5:memory:/docker/one/x'],
      mounts: [`${root} $/memory rw - cgroup cgroup rw,memory`],
      directories: ['memory/x'],
    }).statuses;
  const memory = (statuses: readonly ControllerStatus[]): ControllerStatus | undefined =>
    statuses.find(({ controller }) => controller === 'memory');
  assert.equal(memory(mounted('/docker/one'))?.directory, join(scratch.path, 'memory/x/ct-id'));
  assert.match(
    memory(mounted('/docker/two'))?.reason ?? '',
    /no cgroup v2: .*not mounted, and .* mounted from \/docker\/two, which does not hold our cgroup \/docker\/one\/x/,
  );
});

test('nothing to be had: no cgroups, every reason kept, and closing is fine', async () => {
  using scratch = scratchDirectory();
  const { path } = host(scratch.path, { cgroup: [], mounts: [] });
  const tree = await CgroupTree.open({
    id: 'id',
    recordPath: path('record'),
    host: { procSelf: path('proc') },
  });
  assert.equal(tree.create('vmm', { cpus: 1, memoryMib: 64, pids: 10 }), undefined);
  assert.equal(tree.controllers.length, 4);
  for (const { reason } of tree.controllers) assert.match(reason ?? '', /not mounted/);
  await tree.close();
});

test('a hierarchy that the kernel refuses is left alone, with its reason; a forged record removes nothing', async () => {
  using scratch = scratchDirectory();
  // A directory that is no cgroup: it has nowhere to enable controllers.
  const { path } = host(scratch.path, {
    cgroup: ['0::/svc'],
    mounts: ['/ $/cg rw - cgroup2 cgroup2 rw'],
    directories: ['cg/svc', 'elsewhere/ct-id', 'cg/other'],
    files: {
      'cg/svc/cgroup.controllers': 'cpu memory',
      'cg/svc/cgroup.procs': '42\n',
      record: JSON.stringify([join(scratch.path, 'elsewhere/ct-id'), join(scratch.path, 'cg/other'), 7]),
    },
  });
  const tree = await CgroupTree.open({
    id: 'id',
    recordPath: path('record'),
    host: { procSelf: path('proc') },
  });
  assert.match(tree.controllers[0]?.reason ?? '', /svc cannot be used: ENOENT.*cgroup\.subtree_control/);
  assert.deepEqual(readdirSync(path('elsewhere')), ['ct-id']);
  assert.deepEqual(readdirSync(path('cg')).sort(), ['other', 'svc']);
  await tree.close();
});
