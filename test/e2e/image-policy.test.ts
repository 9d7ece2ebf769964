/** A real image, with real VMs, that policy lets in no longer, and again once somebody has signed it. */
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { installRoot } from '../../src/core/install.ts';
import { findHost } from '../../src/host/client.ts';
import { generateKeyPair } from '../../src/signing/own-key.ts';
import { affected, osvRecord } from '../fixtures/vuln/records.ts';
import { borrowImages } from '../support/borrowed-home.ts';
import { stopHost } from '../support/host.ts';
import { testHome } from '../support/images.ts';
import { runCt } from '../support/run-ct.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

/** The daemon looks every ten seconds. */
const LOOK_MS = 30_000;
const keys = generateKeyPair();
let scratch: Scratch;
let ctHome = '';
let tree = '';

before(async () => {
  scratch = scratchDirectory();
  ctHome = join(scratch.path, 'home');
  tree = join(scratch.path, 'tree');
  for (const path of [ctHome, tree]) mkdirSync(path, { mode: 0o700 });
  await borrowImages(ctHome);
  // What this test signs is for itself alone.
  rmSync(join(ctHome, 'images'));
  cpSync(join(testHome, 'images'), join(ctHome, 'images'), { recursive: true });
});
after(async () => {
  await stopHost(ctHome);
  scratch[Symbol.dispose]();
});

function setPolicy(image: string): void {
  const shipped = readFileSync(join(installRoot, 'policies/default.yml'), 'utf8');
  mkdirSync(join(ctHome, 'policy'), { recursive: true, mode: 0o700 });
  const data = shipped.replace(/^image:\n( .*\n)+/m, `image:\n${image}\n`);
  assert.notEqual(data, shipped);
  writeFileSync(join(ctHome, 'policy/data.yml'), data, { mode: 0o600 });
}

const ct = (...args: readonly string[]) => runCt(args, { cwd: tree, env: { CT_HOME: ctHome } });

test('an image that policy lets in no longer is refused with 122, its warm VMs and templates go, and a signature lets it in again', async () => {
  const first = await ct('run', '--memory', '512M', '--', 'true');
  assert.equal(first.status, 0, first.stderr);
  const host = await findHost(ctHome);
  assert.ok(host && (await host.info()).templates > 0);

  setPolicy('  local: deny');
  const refused = await ct('run', '--memory', '512M', '--', 'true');
  assert.equal(refused.status, 122, refused.stderr);
  assert.match(refused.stderr, /SIGNATURE_MISSING.*made on this machine, and policy wants a signature/);
  assert.match((await ct('alerts', '--json')).stdout, /"ct\.image\.local"/);
  const until = performance.now() + LOOK_MS;
  for (;;) {
    const { templates, warm } = await host.info();
    if (templates === 0 && warm === 0) break;
    assert.ok(performance.now() < until, `${templates} templates and ${warm} warm VMs are left`);
    await sleep(200);
  }

  const key = join(scratch.path, 'image.key');
  writeFileSync(key, keys.privateKeyPem, { mode: 0o600 });
  const signed = await ct('image', 'sign', 'debian-12', '--key', key);
  assert.match(signed.stderr, /with provenance and SBOM/);
  const pem = keys.publicKeyPem.trimEnd().replaceAll(/^/gm, '        ');
  setPolicy(
    `  local: deny\n  attestations: [provenance, sbom]\n  base: [bookworm]\n  signers:\n    release:\n      key: |\n${pem}`,
  );
  const again = await ct('run', '--memory', '512M', '--', 'true');
  assert.equal(again.status, 0, again.stderr);
  const { imageStanding } = JSON.parse((await ct('inspect', '--json')).stdout);
  assert.deepEqual(
    [imageStanding.made, imageStanding.signers, imageStanding.allowed],
    ['built', ['release'], true],
  );
});

test('the daemon compares images that jobs have used with a new database of vulnerabilities, in a thread of its own', async () => {
  setPolicy('  local: allow');
  const used = await ct('run', '--memory', '512M', '--', 'true');
  assert.equal(used.status, 0, used.stderr);
  const feed = join(scratch.path, 'feed.jsonl');
  const record = osvRecord('DEBIAN-CVE-2026-77', { affected: [affected('Debian:12', 'bash', '99')] });
  writeFileSync(feed, `${JSON.stringify(record)}\n`);
  const update = await ct('vuln', 'db', 'update', '--from', feed);
  assert.equal(update.status, 0, update.stderr);
  const until = performance.now() + LOOK_MS;
  for (;;) {
    const { stdout } = await ct('alerts', '--json');
    if (/"ct\.image\.vulnerability".*CVE-2026-77|CVE-2026-77.*"ct\.image\.vulnerability"/.test(stdout)) break;
    assert.ok(performance.now() < until, `no alert: ${stdout}`);
    await sleep(500);
  }
  setPolicy('  scan: {fail-on: low}');
  const refused = await ct('run', '--memory', '512M', '--', 'true');
  assert.equal(refused.status, 122, refused.stderr);
  assert.match(refused.stderr, /IMAGE_VULNERABLE/);
});
