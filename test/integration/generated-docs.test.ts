import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { generatedDocuments } from '../../setup/generate-docs.ts';
import { installRoot } from '../../src/core/install.ts';

for (const [path, content] of generatedDocuments()) {
  test(`${path} says what the code says`, () => {
    const written = readFileSync(join(installRoot, path), 'utf8');
    assert.equal(written, content, `${path} is stale; run: node_modules/.bin/node setup/generate-docs.ts`);
  });
}
