import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { BuiltImage } from '../../src/image/build.ts';
import { recallImage, rememberImage } from '../../src/image/recall.ts';

let home = '';
const hex = (letter: string): string => letter.repeat(64);
const inputs = () => ({
  name: 'debian-12',
  definitionDirs: [join(home, 'images'), join(home, 'missing')],
  ctHome: home,
  guestAgentPath: join(home, 'init'),
  probePath: join(home, 'probe'),
});
// Only the digests matter here.
const image = {
  digest: `sha256:${hex('a')}`,
  manifest: Object.fromEntries(
    [
      ['rootfs', 'b'],
      ['kernel', 'c'],
      ['initramfs', 'd'],
    ].map(([part, letter]) => [part, { digest: `sha256:${hex(letter as string)}`, sizeBytes: 1 }]),
  ),
} as unknown as BuiltImage;

before(() => {
  home = mkdtempSync(join(tmpdir(), 'ct-recall-'));
  for (const directory of ['images', 'blobs/sha256']) mkdirSync(join(home, directory), { recursive: true });
  for (const file of [
    'images/debian-12.yml',
    'init',
    'probe',
    ...['a', 'b', 'c', 'd'].map((l) => `blobs/sha256/${hex(l)}`),
  ]) {
    writeFileSync(join(home, file), 'x');
  }
});
after(() => rmSync(home, { recursive: true, force: true }));

test('an image is recalled until anything it depends on changes', () => {
  assert.equal(recallImage(inputs()), undefined, 'nothing was remembered');
  const changes: [string, () => void][] = [
    ['a definition is edited', () => writeFileSync(join(home, 'images/debian-12.yml'), 'xy')],
    ['a definition appears', () => writeFileSync(join(home, 'images/other.yml'), 'x')],
    ['the guest agent is another', () => writeFileSync(join(home, 'init'), 'xyz')],
    ['a part is gone', () => rmSync(join(home, 'blobs/sha256', hex('b')))],
  ];
  for (const [what, change] of changes) {
    rememberImage(inputs(), image);
    assert.equal(recallImage(inputs()), image.digest, `before ${what}`);
    change();
    assert.equal(recallImage(inputs()), undefined, what);
  }
});

test('a name that is no name of an image reads and writes nothing', () => {
  rememberImage({ ...inputs(), name: '../../etc/passwd' }, image);
  assert.equal(recallImage({ ...inputs(), name: '../../etc/passwd' }), undefined);
});
