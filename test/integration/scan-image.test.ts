/** `ct image scan` and `ct vuln db`, as they are called, on images that a store holds. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Alert } from '../../src/audit/alert.ts';
import { alertDirectory, readAlerts } from '../../src/audit/alert-file.ts';
import { installRoot } from '../../src/core/install.ts';
import { STALE_DEFAULTS } from '../../src/image/scan/config.ts';
import { VulnDatabase } from '../../src/image/scan/database.ts';
import { packagesOfSbom } from '../../src/image/scan/packages.ts';
import { forgetGone, latestResult, type ScanResult, scanFacts } from '../../src/image/scan/result.ts';
import { toSarif } from '../../src/image/scan/sarif.ts';
import { scanWithDatabase } from '../../src/image/scan/scan.ts';
import { readSbom } from '../../src/image/scan/stored-image.ts';
import { updateDatabase } from '../../src/image/scan/update.ts';
import { watchImages } from '../../src/image/scan/watch.ts';
import { ImageStore } from '../../src/image/store.ts';
import { type ImageOver, sbomOf, storeImage } from '../fixtures/vuln/image.ts';
import { affected, osvRecord, type RecordOver, TRACKER } from '../fixtures/vuln/records.ts';

const MEDIUM = [{ type: 'CVSS_V3', score: 'CVSS:3.1/AV:L/AC:L/PR:L/UI:N/S:U/C:H/I:N/A:N' }];
const RECORDS = [
  osvRecord('DEBIAN-CVE-2026-1'),
  osvRecord('DEBIAN-CVE-2026-2', { severity: MEDIUM, affected: [affected('Debian:12', 'openssl')] }),
  osvRecord('DEBIAN-CVE-2026-3', { severity: [], affected: [affected('Debian:12', 'bash', '5.2.15-3')] }),
  osvRecord('DEBIAN-CVE-2026-4', { affected: [affected('Debian:12', 'linux', '6.1.30-1')] }),
  osvRecord('DEBIAN-CVE-2026-5', { affected: [affected('Debian:12', 'linux', '6.1.20-1')] }),
];

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function home(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'ct-scan-'));
  mkdirSync(join(directory, 'policy'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const environment = (ctHome: string): NodeJS.ProcessEnv => ({
  PATH: process.env['PATH'],
  CT_HOME: ctHome,
  CT_POLICY_DIR: join(ctHome, 'policy'),
});

function ct(ctHome: string, ...args: readonly string[]): Outcome {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['src/cli/main.ts', ...args], {
    cwd: installRoot,
    env: environment(ctHome),
    encoding: 'utf8',
    timeout: 50_000,
  });
  return { status, stdout, stderr };
}

function feed(ctHome: string, records: readonly RecordOver[], ageDays = 0): string {
  const path = join(ctHome, 'feed.jsonl');
  writeFileSync(path, records.map((record) => `${JSON.stringify(record)}\n`).join(''));
  const time = new Date(Date.now() - ageDays * 24 * 3600 * 1000);
  utimesSync(path, time, time);
  return path;
}

async function prepared(t: TestContext, over: ImageOver = {}): Promise<string> {
  const ctHome = home(t);
  await storeImage(ctHome, 'debian-12', over);
  await update(ctHome, RECORDS);
  return ctHome;
}

function update(ctHome: string, records: readonly RecordOver[], ageDays = 0): Promise<unknown> {
  const feeds = [feed(ctHome, records, ageDays)];
  return updateDatabase({ ctHome, feeds, now: new Date(), signal: new AbortController().signal });
}

function policy(ctHome: string, text: string): void {
  writeFileSync(join(ctHome, 'policy/vulnerabilities.yml'), text, { mode: 0o600 });
}

test('a scan prints the worst first, with the fix, and fails with 122 from the severity that was asked about', async (t) => {
  const ctHome = await prepared(t);
  const { status, stdout, stderr } = ct(ctHome, 'image', 'scan', 'debian-12');
  assert.equal(status, 0, stderr);
  assert.deepEqual(
    stdout
      .split('\n')
      .map((line) => line.split(/ {2,}/).slice(0, 5).join('|'))
      .slice(0, 5),
    [
      'SEVERITY|ID|PACKAGE|INSTALLED|FIXED IN',
      'critical 9.8|CVE-2026-4|linux|6.1.20-1|6.1.30-1',
      'critical 9.8|CVE-2026-1|openssl|3.0.11-1|3.0.15-1',
      'medium 5.5|CVE-2026-2|openssl|3.0.11-1|-',
      'unknown|CVE-2026-3|bash|5.2.15-2|5.2.15-3',
    ],
  );
  assert.match(stdout, /: 2 critical, 1 medium, 1 unknown\n$/);
  const failed = ct(ctHome, 'image', 'scan', 'debian-12', '--fail-on', 'high');
  assert.equal(failed.status, 122);
  assert.match(
    failed.stderr,
    /error\[IMAGE_VULNERABLE\]: debian-12 has 2 vulnerabilities of severity high or worse, such as CVE-2026-4/,
  );
  assert.match(failed.stdout, /CVE-2026-1 /);
});

test('an image without findings passes, and what nobody has rated counts as medium', async (t) => {
  const ctHome = await prepared(t);
  await update(ctHome, [RECORDS[2] ?? {}]);
  assert.equal(ct(ctHome, 'image', 'scan', 'debian-12', '--fail-on', 'high').status, 0);
  assert.equal(ct(ctHome, 'image', 'scan', 'debian-12', '--fail-on', 'medium').status, 122);
  await update(ctHome, [RECORDS[4] ?? {}]);
  const clean = ct(ctHome, 'image', 'scan', '--fail-on', 'negligible');
  assert.equal(clean.status, 0);
  assert.match(clean.stdout, /: nothing known\n$/);
});

test('without a database, without what it has to know, or without an SBOM nothing is called clean', async (t) => {
  const ctHome = home(t);
  assert.match(ct(ctHome, 'image', 'scan', 'debian-12').stderr, /error\[IMAGE_NOT_FOUND\]/);
  await storeImage(ctHome, 'debian-12', { npm: [{ name: 'left-pad', version: '1.0.0' }] });
  const missing = ct(ctHome, 'image', 'scan', 'debian-12');
  assert.match(missing.stderr, /error\[VULN_DB_MISSING\]: there is no vulnerability database/);
  assert.equal(missing.stdout, '');
  await update(ctHome, RECORDS);
  const partly = ct(ctHome, 'image', 'scan', 'debian-12');
  assert.match(partly.stderr, /error\[VULN_DB_MISSING\]: the vulnerability database knows nothing of npm/);
  assert.equal(partly.stdout, '');
  await update(ctHome, [
    ...RECORDS,
    osvRecord('GHSA-1', { aliases: ['CVE-2026-9'], affected: [affected('npm', 'left-pad', '1.3.0')] }),
  ]);
  assert.match(ct(ctHome, 'image', 'scan', 'debian-12').stdout, /CVE-2026-9 +left-pad +1\.0\.0 +1\.3\.0/);
});

test('a database that grows old is warned of, and refused past the limit, before anything is printed', async (t) => {
  const ctHome = await prepared(t);
  await update(ctHome, RECORDS, 5);
  const old = ct(ctHome, 'image', 'scan', 'debian-12');
  assert.equal(old.status, 0);
  assert.match(old.stderr, /the vulnerability database is as of [0-9-]+, 5 days ago; update it/);
  assert.match(ct(ctHome, 'vuln', 'db', 'status').stdout, /5 days ago; update it\n$/);
  await update(ctHome, RECORDS, 15);
  const stale = ct(ctHome, 'image', 'scan', 'debian-12');
  assert.equal(stale.status, 122);
  assert.equal(stale.stdout, '');
  assert.match(stale.stderr, /error\[VULN_DB_STALE\]: .*15 days ago; more than 14d is refused/);
  policy(ctHome, 'version: 1\nstale:\n  warn-after: 20d\n  refuse-after: 30d\n');
  assert.deepEqual([ct(ctHome, 'image', 'scan').status, ct(ctHome, 'image', 'scan').stderr], [0, '']);
});

test("the operator's file names feeds, a threshold and what is accepted until when", async (t) => {
  const ctHome = await prepared(t);
  const path = feed(ctHome, RECORDS);
  policy(
    ctHome,
    `version: 1
feeds: [${path}]
fail-on: high
allow:
  - id: CVE-2026-1
    packages: [openssl]
    reason: the server is not used in jobs
    expires: 2999-12-31
  - id: DEBIAN-CVE-2026-4
    images: [debian-12]
    reason: KVM does not use it
    expires: 2026-01-31
`,
  );
  const updated = ct(ctHome, 'vuln', 'db', 'update', '--json');
  assert.equal(updated.status, 0, updated.stderr);
  assert.deepEqual((JSON.parse(updated.stdout) as { ecosystems: unknown }).ecosystems, { 'Debian:12': 5 });
  const { status, stdout, stderr } = ct(ctHome, 'image', 'scan', 'debian-12');
  assert.equal(status, 122);
  assert.match(
    stderr,
    /CVE-2026-4 in linux counts again: its exception in .*vulnerabilities\.yml ended on 2026-01-31/,
  );
  assert.match(stdout, /: 1 critical, 1 medium, 1 unknown; 1 accepted\n$/);
  assert.doesNotMatch(stdout, /CVE-2026-1 /);
  const allow = join(ctHome, 'allow.yml');
  writeFileSync(allow, 'version: 1\nallow: [{id: CVE-2026-4, reason: for a week, expires: 2999-01-07}]\n');
  assert.equal(ct(ctHome, 'image', 'scan', 'debian-12', '--allow', allow).status, 0);
});

test('an allow-list that others may write to, without reason, or without a date is CONFIG_INVALID', async (t) => {
  const ctHome = await prepared(t);
  for (const entry of [
    '{id: A, reason: r}',
    '{id: A, expires: 2999-01-01}',
    '{id: A, reason: r, expires: 2026-02-30}',
    '{reason: r, expires: 2999-01-01}',
  ]) {
    policy(ctHome, `version: 1\nallow: [${entry}]\n`);
    const { status, stdout, stderr } = ct(ctHome, 'image', 'scan', 'debian-12');
    assert.deepEqual([status, stdout], [2, ''], entry);
    assert.match(stderr, /error\[CONFIG_INVALID\]/, entry);
  }
  policy(ctHome, 'version: 1\n');
  assert.equal(ct(ctHome, 'image', 'scan', 'debian-12').status, 0);
  spawnSync('chmod', ['o+w', join(ctHome, 'policy/vulnerabilities.yml')]);
  assert.match(
    ct(ctHome, 'image', 'scan', 'debian-12').stderr,
    /error\[CONFIG_INVALID\]: .* can be written by other users/,
  );
});

test('a VEX document excuses what it says, with its words', async (t) => {
  const ctHome = await prepared(t);
  const vex = join(ctHome, 'vex.json');
  const statement = {
    vulnerability: { name: 'CVE-2026-1' },
    products: [{ '@id': 'pkg:oci/debian-12', subcomponents: [{ '@id': 'pkg:deb/debian/libssl3' }] }],
    status: 'not_affected',
    justification: 'vulnerable_code_not_in_execute_path',
  };
  const head = { '@context': 'https://openvex.dev/ns/v0.2.0', '@id': 'urn:x', author: 'us', version: 1 };
  writeFileSync(vex, JSON.stringify({ ...head, timestamp: '2026-11-01T00:00:00Z', statements: [statement] }));
  const { stdout } = ct(ctHome, 'image', 'scan', 'debian-12', '--format', 'json', '--allow', vex);
  const result = JSON.parse(stdout) as ScanResult;
  assert.deepEqual(
    result.findings.map(({ id, exception }) => [id, exception?.status, exception?.reason]),
    [
      ['CVE-2026-4', undefined, undefined],
      ['CVE-2026-1', 'not_affected', 'vulnerable_code_not_in_execute_path'],
      ['CVE-2026-2', undefined, undefined],
      ['CVE-2026-3', undefined, undefined],
    ],
  );
  assert.deepEqual(result.counts, { critical: 1, high: 0, medium: 1, unknown: 1, low: 0, negligible: 0 });
  const { counts, source, scannedAt } = result;
  assert.deepEqual(scanFacts(result, new Date(result.scannedAt)), {
    ...{ detector: 'database', scanned_at: scannedAt, as_of: source.asOf, revision: source.revision, counts },
    ...{ worst: 'critical', accepted: 1, fixable: 2, unexamined: 0 },
  });
});

test('the result is kept for the image and the database that gave it', async (t) => {
  const ctHome = await prepared(t);
  const { stdout } = ct(ctHome, 'image', 'scan', 'debian-12', '--format', 'json');
  const result = JSON.parse(stdout) as ScanResult;
  const stored = await new ImageStore(ctHome).find('debian-12');
  assert.equal(result.image.digest, stored?.digest);
  using database = new VulnDatabase(ctHome);
  assert.equal(result.source.revision, database.status.revision);
  assert.deepEqual(await latestResult(ctHome, result.image.digest), result);
  const hex = (digest: string): string => digest.replace('sha256:', '');
  const kept = readdirSync(join(ctHome, 'vuln/results', hex(result.image.digest)));
  assert.deepEqual(kept, [`${hex(result.source.revision)}.json`]);
  await forgetGone(ctHome, async (digest) => digest === result.image.digest);
  assert.notEqual(await latestResult(ctHome, result.image.digest), undefined);
  await forgetGone(ctHome, async () => false);
  assert.deepEqual(readdirSync(join(ctHome, 'vuln/results')), []);
});

test('a scan as SARIF 2.1.0 is the same, byte for byte', async (t) => {
  const ctHome = home(t);
  const feeds = [join(ctHome, 'feed.jsonl'), join(ctHome, 'tracker.json')];
  writeFileSync(feeds[0] ?? '', RECORDS.map((record) => JSON.stringify(record)).join('\n'));
  writeFileSync(feeds[1] ?? '', JSON.stringify(TRACKER));
  const now = new Date('2026-11-24T12:00:00Z');
  for (const path of feeds) utimesSync(path, now, now);
  await updateDatabase({ ctHome, feeds, now, signal: new AbortController().signal });
  using database = new VulnDatabase(ctHome);
  const accepted = {
    packages: [],
    images: [],
    status: 'accepted',
    reason: 'not reachable',
    from: 'a',
    saidMs: 0,
  } as const;
  const { result } = scanWithDatabase(database, {
    image: { name: 'debian-12', digest: `sha256:${'a'.repeat(64)}` },
    sbom: packagesOfSbom(sbomOf('debian-12')),
    exceptions: [{ ...accepted, ids: ['CVE-2026-2'], expiresMs: undefined }],
    stale: STALE_DEFAULTS,
    now,
  });
  const golden = join(installRoot, 'test/fixtures/vuln/debian-12.sarif');
  assert.equal(toSarif(result, '0.1.0'), readFileSync(golden, 'utf8'));
});

async function alertsOf(ctHome: string): Promise<readonly Alert[]> {
  const alerts: Alert[] = [];
  for await (const alert of readAlerts(alertDirectory(ctHome))) alerts.push(alert);
  return alerts;
}

async function until<T>(what: string, look: () => Promise<T | undefined>): Promise<T> {
  for (const deadline = performance.now() + 30_000; ; ) {
    const seen = await look();
    if (seen !== undefined) return seen;
    assert.ok(performance.now() < deadline, `not in 30 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

test('a watch raises an alert for what is new in an image, once, and another for what comes later', async (t) => {
  const ctHome = await prepared(t);
  await update(ctHome, [RECORDS[0] ?? {}]);
  const child = spawn(process.execPath, ['src/cli/main.ts', 'image', 'scan', '--watch', '--format', 'json'], {
    cwd: installRoot,
    env: environment(ctHome),
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const [first] = await until('the first alert', async () => {
    const alerts = await alertsOf(ctHome);
    return alerts.length > 0 ? alerts : undefined;
  });
  assert.equal(first?.rule, 'ct.image.vulnerability');
  assert.equal(first?.severity, 'critical');
  assert.equal(first?.run.id, (await new ImageStore(ctHome).find('debian-12'))?.digest);
  assert.equal(
    first?.title,
    'image debian-12 has a new vulnerability CVE-2026-1 (critical) in openssl 3.0.11-1, fixed in 3.0.15-1',
  );
  const evidence = JSON.parse(readFileSync(first?.evidence.file ?? '', 'utf8')) as ScanResult;
  assert.ok(evidence.findings.some(({ id }) => id === first?.evidence.id));
  child.kill('SIGTERM');
  const [status] = (await once(child, 'exit')) as [number | null];
  assert.equal(status, 0);
});

test('a watch looks again at new databases and images, and tells each finding once', async (t) => {
  const ctHome = await prepared(t);
  await update(ctHome, [RECORDS[0] ?? {}]);
  const store = new ImageStore(ctHome);
  const filed: Alert[] = [];
  const stop = new AbortController();
  let scans = 0;
  const watching = watchImages({
    ctHome,
    images: () => store.list(),
    scan: async (image) => {
      using database = new VulnDatabase(ctHome);
      const text = await readSbom(store, image);
      const shared = { exceptions: [], stale: STALE_DEFAULTS, now: new Date() };
      return scanWithDatabase(database, { image, sbom: packagesOfSbom(text), ...shared });
    },
    alerts: { file: (alert) => void filed.push(alert) },
    threshold: 'high',
    signal: stop.signal,
    onScan: () => void scans++,
    onProblem: (_, error) => assert.fail(String(error)),
    pollMs: 20,
  });
  const seen = (count: number): Promise<true> =>
    until(`${count} scans`, async () => (scans >= count ? true : undefined));
  await seen(1);
  assert.deepEqual(
    filed.map(({ evidence, count }) => [evidence.id, count]),
    [['CVE-2026-1', 1]],
  );
  // Another database with the same in it, and something below the threshold: nothing to tell.
  await update(ctHome, RECORDS.slice(0, 3));
  await seen(2);
  assert.equal(filed.length, 1);
  await update(ctHome, RECORDS);
  await seen(3);
  assert.deepEqual(
    filed.slice(1).map(({ evidence, count }) => [evidence.id, count]),
    [['CVE-2026-4', 1]],
  );
  // Another image by that name: what it has is new in it.
  await storeImage(ctHome, 'debian-12', { kernelVersion: '6.1.30-1' });
  await seen(4);
  assert.deepEqual(
    filed.slice(2).map(({ evidence, count }) => [evidence.id, count]),
    [['CVE-2026-1', 1]],
  );
  stop.abort();
  await watching;
});
