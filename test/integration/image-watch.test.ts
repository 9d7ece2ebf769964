/** Images in use are looked at again: by the daemon's watch, with its gate and policy, and machines that only note what they are told. */
import assert from 'node:assert/strict';
import { readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Alert } from '../../src/audit/alert.ts';
import type { CtError } from '../../src/core/errors.ts';
import { ImageWatch } from '../../src/host/image-watch.ts';
import { updateDatabase } from '../../src/image/scan/update.ts';
import { ImageSignatures, imageStatement } from '../../src/image/signatures.ts';
import { generateKeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES } from '../../src/signing/services.ts';
import { keySigner } from '../../src/signing/signer.ts';
import { osvRecord } from '../fixtures/vuln/records.ts';
import { type GuardedHost, guardedHost } from '../support/guarded-host.ts';

const NEVER_MS = 3_600_000;
const keys = generateKeyPair();
const SIGNED = `local: deny
signers:
  release:
    key: |
${keys.publicKeyPem.trimEnd().replaceAll(/^/gm, '      ')}
`;

let host: GuardedHost;
before(async () => {
  host = await guardedHost();
});
after(() => host[Symbol.asyncDispose]());

interface Watching extends AsyncDisposable {
  readonly watch: ImageWatch;
  readonly alerts: Alert[];
  readonly givenUp: string[];
  readonly problems: unknown[];
  /** A run that was let in with the image; `aborted`: why it was ended. */
  start(
    digest: string,
    repository?: string,
    state?: 'queued' | 'running',
  ): Disposable & { readonly aborted: () => CtError | undefined };
}

function watching(): Watching {
  const alerts: Alert[] = [];
  const givenUp: string[] = [];
  const problems: unknown[] = [];
  const watch = new ImageWatch({
    ctHome: host.ctHome,
    gate: host.gate,
    policy: host.policy,
    machines: { giveUpImage: async (digest) => void givenUp.push(digest) },
    alerts: { file: (alert) => void alerts.push(alert) },
    onProblem: (error) => problems.push(error),
    lookMs: NEVER_MS,
  });
  let runs = 0;
  return {
    ...{ watch, alerts, givenUp, problems },
    start: (digest, repository = 'acme/site', state = 'running') => {
      let aborted: CtError | undefined;
      const facts = { id: `run${++runs}`, job: 'job', trust: 'trusted', repository } as const;
      const run = {
        state,
        abort: (error: CtError) => {
          aborted = error;
        },
      };
      const live = watch.admitted(run, facts, digest);
      return { aborted: () => aborted, [Symbol.dispose]: () => live[Symbol.dispose]() };
    },
    [Symbol.asyncDispose]: () => watch.close(),
  };
}

async function signed(): Promise<string> {
  const digest = await host.addImage();
  const signer = keySigner(await ownKey(keys.privateKeyPem), NO_SERVICES);
  const bundle = await signer.signStatement(imageStatement('small', digest));
  await new ImageSignatures(host.ctHome).add(digest, bundle);
  return digest;
}

test('what was made of an image that policy revokes is given up, with one alert, and its jobs go on', async () => {
  host.setPolicy('local: allow');
  const [digest, other] = [await host.addImage('built'), await host.addImage('built')];
  await using daemon = watching();
  using run = daemon.start(digest);
  using _other = daemon.start(other);
  await daemon.watch.look();
  assert.deepEqual([daemon.givenUp, daemon.alerts], [[], []]);
  host.setPolicy(`revoked: ['${digest}']`);
  await daemon.watch.look();
  assert.deepEqual(daemon.givenUp, [digest]);
  await daemon.watch.look();
  assert.deepEqual(
    daemon.alerts.map(({ rule, action, run: { id } }) => [rule, action, id]),
    [['ct.image.revoked', 'denied', digest]],
  );
  assert.equal(run.aborted(), undefined);
  host.setPolicy('local: allow');
  await daemon.watch.look();
  host.setPolicy(`revoked: ['${digest}']`);
  await daemon.watch.look();
  assert.equal(daemon.alerts.length, 2, 'let in again, and refused again: told again');
});

test('jobs in it are ended with the code of the refusal where policy says `running: terminate`', async () => {
  host.setPolicy('local: allow');
  const digest = await host.addImage('built');
  await using daemon = watching();
  using run = daemon.start(digest);
  const ended = daemon.start(digest);
  ended[Symbol.dispose]();
  host.setPolicy(`running: terminate\nrevoked: ['${digest}']`);
  await daemon.watch.look();
  assert.equal(run.aborted()?.code, 'IMAGE_REVOKED');
  assert.equal(ended.aborted(), undefined, 'it had ended by itself');
  assert.deepEqual(
    daemon.alerts.filter(({ action }) => action === 'terminated').map(({ run: { id } }) => id),
    ['run1'],
  );
});

test('a job that waits for its turn is not let into an image that was revoked meanwhile', async () => {
  host.setPolicy('local: allow');
  const digest = await host.addImage('built');
  await using daemon = watching();
  using running = daemon.start(digest);
  using queued = daemon.start(digest, 'acme/site', 'queued');
  await daemon.watch.look();
  assert.equal(queued.aborted(), undefined);
  host.setPolicy(`revoked: ['${digest}']`);
  await daemon.watch.look();
  assert.equal(queued.aborted()?.code, 'IMAGE_REVOKED');
  assert.equal(running.aborted(), undefined);
});

test('an image is kept as long as some job may start in it', async () => {
  host.setPolicy('local: allow');
  const digest = await host.addImage('built');
  await using daemon = watching();
  using _site = daemon.start(digest);
  using _other = daemon.start(digest, 'acme/other');
  host.setPolicy('local: allow', 'repositories: {acme/site: {image: {local: deny}}}');
  await daemon.watch.look();
  assert.deepEqual([daemon.givenUp, daemon.alerts], [[], []]);
  host.setPolicy('local: deny');
  await daemon.watch.look();
  assert.deepEqual(daemon.givenUp, [digest]);
});

test('a signature that is removed counts at the next look', async () => {
  host.setPolicy(SIGNED);
  const digest = await signed();
  await using daemon = watching();
  using _run = daemon.start(digest);
  await daemon.watch.look();
  assert.deepEqual(daemon.givenUp, []);
  rmSync(join(host.ctHome, 'images', digest.replace(':', '/')), { recursive: true });
  await daemon.watch.look();
  assert.deepEqual(
    [daemon.givenUp, daemon.alerts.map(({ rule }) => rule)],
    [[digest], ['ct.image.signature']],
  );
});

test('a part that was changed on disk is an alert, and what was made of the image is given up', async () => {
  host.setPolicy('local: allow');
  const digest = await host.addImage('built');
  await using daemon = watching();
  using _run = daemon.start(digest);
  await daemon.watch.look();
  const { kernel } = await host.store.manifest(digest);
  writeFileSync(join(host.ctHome, 'blobs', kernel.digest.replace(':', '/')), Buffer.alloc(kernel.sizeBytes));
  await daemon.watch.look();
  assert.deepEqual([daemon.givenUp, daemon.alerts.map(({ rule }) => rule)], [[digest], ['ct.image.corrupt']]);
});

test('a new database of vulnerabilities is compared with images in use: what is new is an alert, and keeps the image out', async () => {
  host.setPolicy('local: allow');
  const digest = await host.addImage('built');
  await using daemon = watching();
  using _run = daemon.start(digest);
  await daemon.watch.look();
  const feed = join(host.ctHome, 'feed.jsonl');
  writeFileSync(feed, `${JSON.stringify(osvRecord('DEBIAN-CVE-2026-1'))}\n`);
  await updateDatabase({
    ctHome: host.ctHome,
    feeds: [feed],
    now: new Date(),
    signal: new AbortController().signal,
  });
  await daemon.watch.look();
  const results = join(host.ctHome, 'vuln/results', digest.slice('sha256:'.length));
  for (let tries = 0; daemon.alerts.length === 0; tries++) {
    assert.ok(tries < 200 && daemon.problems.length === 0, String(daemon.problems));
    await sleep(50);
  }
  assert.equal(readdirSync(results).length, 1);
  assert.deepEqual(
    daemon.alerts.map(({ rule, run: { id } }) => [rule, id]),
    [['ct.image.vulnerability', digest]],
  );
  assert.deepEqual(daemon.givenUp, []);
  host.setPolicy('scan: {fail-on: high}');
  await daemon.watch.look();
  assert.deepEqual(daemon.givenUp, [digest]);
  assert.equal(daemon.alerts.at(-1)?.rule, 'ct.image.vulnerable');
  assert.deepEqual(daemon.problems, []);
});
