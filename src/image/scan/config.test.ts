import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { installRoot } from '../../core/install.ts';
import { checkAge } from './age.ts';
import { readAllowFile, readScanConfig, STALE_DEFAULTS } from './config.ts';
import { reaches } from './severity.ts';

function directoryWith(t: TestContext, text?: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'ct-scan-config-'));
  t.after(() => rmSync(directory, { recursive: true }));
  if (text !== undefined) writeFileSync(join(directory, 'vulnerabilities.yml'), text, { mode: 0o600 });
  return directory;
}

test('the file that ct comes with says what holds without one', (t) => {
  const shipped = readFileSync(join(installRoot, 'policies/vulnerabilities.yml'), 'utf8');
  assert.deepEqual(readScanConfig(directoryWith(t, shipped)), readScanConfig(undefined));
  assert.deepEqual(readScanConfig(directoryWith(t)), readScanConfig(undefined));
  assert.deepEqual(readScanConfig(undefined).stale, STALE_DEFAULTS);
  const entry = shipped
    .replaceAll(/^# {3}/gm, '   ')
    .replace('allow: []', '')
    .replace(/^ {3}- id/m, 'allow:\n   - id');
  assert.equal(readScanConfig(directoryWith(t, entry)).exceptions[0]?.reason, 'jobs open no port');
});

test('feeds and documents are found from where the file is; URLs stay as they are', (t) => {
  const directory = directoryWith(t, 'version: 1\nfeeds: [a.zip, /b.json, "https://example.com/c"]\n');
  assert.deepEqual(readScanConfig(directory).feeds, [
    join(directory, 'a.zip'),
    '/b.json',
    'https://example.com/c',
  ]);
});

test('a database is fresh, old or refused by its age, and refused if that is unknown', () => {
  const now = new Date('2026-11-24T00:00:00Z');
  const limits = { warnAfterMs: 1000, refuseAfterMs: 2000 };
  const of = (ageMs: number): string | undefined =>
    checkAge('it', new Date(now.getTime() - ageMs), limits, now);
  assert.equal(of(1000), undefined);
  assert.match(of(1001) ?? '', /^it is as of 2026-11-23, 0 days ago; update it$/);
  assert.throws(() => of(2001), { code: 'VULN_DB_STALE' });
  assert.throws(() => checkAge('it', new Date(Number.NaN), limits, now), { code: 'VULN_DB_STALE' });
});

test('a severity reaches a threshold that is not above it; what nobody has rated counts as medium', () => {
  assert.equal(reaches('critical', 'high'), true);
  assert.equal(reaches('high', 'high'), true);
  assert.equal(reaches('medium', 'high'), false);
  assert.equal(reaches('unknown', 'medium'), true);
  assert.equal(reaches('unknown', 'high'), false);
  assert.equal(reaches('negligible', 'negligible'), true);
  assert.equal(reaches('negligible', 'low'), false);
});

test('the examples of docs/scanning.md are taken as they stand', (t) => {
  const text = readFileSync(join(installRoot, 'docs/scanning.md'), 'utf8');
  const directory = directoryWith(t);
  for (const language of ['yaml', 'json']) {
    const example = text.split(`\`\`\`${language}\n`)[1]?.split('```')[0] ?? '';
    const file = join(directory, language);
    writeFileSync(file, example);
    assert.deepEqual(
      readAllowFile(file).map(({ ids, images }) => [ids[0], images.length]),
      [['CVE-2026-1234', 1]],
    );
  }
});
