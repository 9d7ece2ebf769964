import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type DiffSide, diffMarkdown, diffSides, isSame } from './diff.ts';
import type { InventoryFile } from './inventory.ts';
import { describeDifference, diffPackages } from './package-diff.ts';
import { firstDifferentFile } from './reproduce.ts';

const bytes = (count: number): string => `${count} B`;
const side = (packages: DiffSide['packages'], more: Partial<DiffSide> = {}): DiffSide => ({
  ...{ label: 'x', packages, npm: [], kernel: 'Linux 6.1' },
  ...more,
});
const file = (path: string, more: Partial<InventoryFile> = {}): InventoryFile => ({
  ...{ path, type: 'file', mode: 0o644, uid: 0, gid: 0, sizeBytes: 1, sha256: 'a' },
  ...more,
});

test('packages are added, removed, upgraded and downgraded in the order of Debian, or rebuilt', () => {
  const before = [
    { name: 'gone', version: '1' },
    { name: 'newer', version: '1.0-9' },
    { name: 'older', version: '1:1' },
    { name: 'same', version: '1' },
    { name: 'other-file', version: '1', sha256: 'a' },
  ];
  const after = [
    { name: 'new', version: '1' },
    { name: 'newer', version: '1.0-10' },
    { name: 'older', version: '2' },
    { name: 'same', version: '1', sha256: 'b' },
    { name: 'other-file', version: '1', sha256: 'b' },
  ];
  assert.deepEqual(diffPackages(before, after).map(describeDifference), [
    '- gone 1',
    '+ new 1',
    '~ newer 1.0-9 → 1.0-10',
    '~ older 1:1 → 2 (older)',
    '~ other-file 1, with another digest',
  ]);
  assert.deepEqual(diffPackages(after, after), []);
});

test('Markdown tells counts, sizes, kernel, packages and files, and nothing where nothing differs', () => {
  const before = side([{ name: 'git', version: '1' }], {
    sizeBytes: 100,
    files: [file('/a'), file('/b'), file('/c')],
  });
  const after = side(
    [
      { name: 'git', version: '2' },
      { name: 'make', version: '4.3' },
    ],
    {
      label: 'y',
      kernel: 'Linux 6.2',
      sizeBytes: 150,
      files: [file('/a', { mode: 0o755 }), file('/c'), file('/d')],
    },
  );
  const text = diffMarkdown(diffSides(before, after), bytes);
  for (const line of [
    '### Image: `x` → `y`',
    'Packages: 1 added, 0 removed, 1 changed. Size: 100 B → 150 B (+50 B).',
    'Kernel: `Linux 6.1` → `Linux 6.2`',
    '| `git` | upgraded | `1` | `2` |',
    '| `make` | added |  | `4.3` |',
    '<details><summary>1 files added</summary>',
    '- `/d`',
    '- `/b`',
    '- `/a`',
  ]) {
    assert.ok(text.split('\n').includes(line), `${line}\n${text}`);
  }
  assert.ok(isSame(diffSides(before, before)));
  assert.match(diffMarkdown(diffSides(before, before), bytes), /No difference\./);
});

test('a name that would be Markdown is shown as it is', () => {
  const evil = 'x`</details>|<img src=x>\n# heading';
  const text = diffMarkdown(diffSides(side([], { files: [] }), side([], { files: [file(evil)] })), bytes);
  assert.ok(text.includes('- `x?</details>?<img src=x>?# heading`'));
  assert.ok(!text.split('\n').some((line) => line.startsWith('# heading')));
});

test('a long list is cut, and says so', () => {
  const many = Array.from({ length: 300 }, (_, index) => ({ name: `p${1000 + index}`, version: '1' }));
  const text = diffMarkdown(diffSides(side([]), side(many)), bytes);
  assert.equal(text.match(/^\| `p/gm)?.length, 200);
  assert.match(text, /… and 100 more\./);
});

test('of two builds the first path that differs is named, and in what it differs', () => {
  const files = [file('/a'), file('/b'), file('/c')];
  assert.equal(firstDifferentFile(files, files), undefined);
  assert.equal(
    firstDifferentFile(files, [file('/a'), file('/b', { sha256: 'b', mode: 0o600 }), file('/c', { uid: 1 })]),
    '/b: another mode, digest',
  );
  assert.equal(firstDifferentFile(files, files.slice(1)), '/a: only in the first build');
  assert.equal(firstDifferentFile(files, [...files, file('/bb')]), '/bb: only in the second build');
});
