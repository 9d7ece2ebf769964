import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import fc from 'fast-check';
import semver from 'semver';
import { KINDS } from '../src/change.js';
import { nextVersion, releaseNotes } from '../src/notes.js';

const change = fc.record({ kind: fc.constantFrom(...Object.keys(KINDS)), text: fc.stringMatching(/^[a-z]{1,20}$/) });
const version = fc.tuple(fc.nat(99), fc.nat(99), fc.nat(99)).map((parts) => parts.join('.'));

test('the largest change decides about the version', () => {
  assert.equal(nextVersion('1.4.2', [{ kind: 'fixed' }]), '1.4.3');
  assert.equal(nextVersion('1.4.2', [{ kind: 'fixed' }, { kind: 'added' }]), '1.5.0');
  assert.equal(nextVersion('1.4.2', [{ kind: 'breaking' }, { kind: 'added' }]), '2.0.0');
  assert.throws(() => nextVersion('one', []), /one is not a version/);
});

test('whatever the changes, the next version is greater, and without changes the same', () => {
  fc.assert(
    fc.property(version, fc.array(change), (current, changes) => {
      assert.equal(semver.compare(nextVersion(current, changes), current), changes.length === 0 ? 0 : 1);
    }),
  );
});

test('every change is in the notes once', () => {
  fc.assert(
    fc.property(version, fc.array(change, { minLength: 1 }), (next, changes) => {
      const lines = releaseNotes(next, changes).split('\n').filter((line) => line.startsWith('- '));
      assert.deepEqual(lines.toSorted(), changes.map(({ text }) => `- ${text}`).toSorted());
    }),
  );
});

test('the command prints the notes of the next version', () => {
  const output = execFileSync(process.execPath, ['src/cli.js'], { encoding: 'utf8' });
  assert.match(output, /^## 1\.5\.0\n\n### Added\n\n- Changes that break/);
});
