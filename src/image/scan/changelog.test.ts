import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readChangelog } from './changelog.ts';

const entry = (version: string, urgency: string, ...lines: readonly string[]): string =>
  `openssl (${version}) bookworm-security; urgency=${urgency}\n\n${lines.map((line) => `  * ${line}\n`).join('')}\n -- A <a@b.c>  Mon, 01 Jan 2026 00:00:00 +0000\n\n`;
const CHANGELOG = [
  entry('3.0.15-1~deb12u2', 'medium', 'CVE-2026-0005 (the newest)', 'not a CVE: CVE-26-1'),
  entry(
    '3.0.15-1~deb12u1',
    'high',
    'New version, fixes CVE-2026-0003, CVE-2026-0004',
    '  and CVE-2026-0003 again',
  ),
  entry('3.0.11-1', 'emergency', 'CVE-2020-0001'),
  entry('3.0.10-1', 'low', 'CVE-2019-0001'),
].join('');

test('what the entries between two versions name is what the update fixes', () => {
  assert.deepEqual(readChangelog(CHANGELOG, '3.0.11-1', '3.0.15-1~deb12u2'), {
    cves: ['CVE-2026-0003', 'CVE-2026-0004', 'CVE-2026-0005'],
    severity: 'high',
  });
  assert.deepEqual(readChangelog(CHANGELOG, '3.0.15-1~deb12u1', '3.0.15-1~deb12u2'), {
    cves: ['CVE-2026-0005'],
    severity: 'medium',
  });
  assert.deepEqual(readChangelog(CHANGELOG, '3.0.11-1', '3.0.15-1~deb12u1').cves, [
    'CVE-2026-0003',
    'CVE-2026-0004',
  ]);
});

test('the changelog of a signed kernel is read by the versions of the kernel', () => {
  const text = CHANGELOG.replace('openssl (3.0.15-1~deb12u2)', 'linux-signed-amd64 (6.1.30+1)').replace(
    'openssl (3.0.15-1~deb12u1)',
    'linux-signed-amd64 (6.1.20+1)',
  );
  assert.deepEqual(readChangelog(text, '6.1.20-1', '6.1.30-1').cves, ['CVE-2026-0005']);
});

test('what is no changelog names nothing', () => {
  for (const text of ['', 'CVE-2026-0001', `${'x'.repeat(1_000_000)}`, 'openssl (1) x; urgency=low']) {
    assert.deepEqual(readChangelog(text, '0', '9').cves, []);
  }
});
