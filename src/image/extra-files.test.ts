import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { copyFiles } from './extra-files.ts';

test('files are copied if they are the ones that the definition names, and no others', () => {
  const directory = mkdtempSync(join(tmpdir(), 'ct-files-'));
  try {
    const out = join(directory, 'out');
    mkdirSync(out);
    writeFileSync(join(directory, 'tool'), 'contents');
    symlinkSync('tool', join(directory, 'link'));
    execFileSync('mkfifo', [join(directory, 'pipe')]);
    const sha256 = createHash('sha256').update('contents').digest('hex');
    const file = (name: string, digest = sha256) => ({
      ...{ path: '/usr/local/bin/tool', source: join(directory, name), sha256: digest },
      executable: true,
    });
    const plain = { ...file('tool'), path: '/etc/tool', executable: false };
    assert.equal(copyFiles([file('tool'), plain], out), '0 0755 usr/local/bin/tool\n1 0644 etc/tool\n');
    assert.equal(readFileSync(join(out, '1'), 'utf8'), 'contents');

    const refused = (name: string, message: RegExp, digest?: string): void =>
      assert.throws(() => copyFiles([file(name, digest)], out), {
        code: 'IMAGE_DEFINITION_INVALID',
        message,
      });
    refused('tool', /has the SHA-256 [0-9a-f]{64} instead of 0{64}$/, '0'.repeat(64));
    refused('absent', /cannot be read/);
    refused('link', /cannot be read/);
    refused('pipe', /is no file/);
    refused('out', /is no file/);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
