/** The locks that come with ct fit the definitions that come with it. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { definitionNames, loadDefinition, lockPath } from '../../src/image/definition.ts';
import { formatLock, readLock } from '../../src/image/lock-file.ts';

const directories = [join(installRoot, 'images')];

for (const name of definitionNames(directories)) {
  test(`the lock of ${name} was made for its definition, by ct, and names no host`, () => {
    const path = lockPath(name, directories);
    const lock = readLock(path);
    const definition = loadDefinition(name, directories);
    assert.ok(lock, `${path} is missing: run \`ct image lock ${name}\``);
    assert.equal(lock.definition, `sha256:${definition.packagesDigest}`, `run \`ct image lock ${name}\``);
    assert.equal(lock.name, name);
    assert.deepEqual(lock.npm, definition.npm);
    const text = readFileSync(path, 'utf8');
    assert.equal(text, formatLock(lock));
    assert.doesNotMatch(text, /:\/\/|\.(?:org|com|net)\b/);
    const names = new Set(lock.packages.map((entry) => entry.name));
    for (const wanted of definition.packages) assert.ok(names.has(wanted.split('=', 1)[0] ?? ''), wanted);
  });
}
