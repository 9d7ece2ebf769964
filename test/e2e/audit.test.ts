/** Jobs in real VMs, on record: from the guest's kernel to a seal that verifies. The daemon is this process. */
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Alert } from '../../src/audit/alert.ts';
import { trustKeyFile } from '../../src/audit/host-key.ts';
import { readAudit } from '../../src/audit/reader.ts';
import type { AuditEvent } from '../../src/audit/records.ts';
import type { AuditSeal } from '../../src/audit/seal.ts';
import { verifyAudit } from '../../src/audit/verify.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { PresetResolver } from '../../src/egress/presets/index.ts';
import type { RunDetail } from '../../src/host/api.ts';
import type { HostClient } from '../../src/host/client.ts';
import { ImageGate } from '../../src/host/image-gate.ts';
import { ImageStore } from '../../src/image/store.ts';
import type { JobResult, RunEvent } from '../../src/protocol/run.ts';
import { testHome, testImage } from '../support/images.ts';
import { makeMachines } from '../support/machines.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { servedHost } from '../support/served-host.ts';

const cleanup = new AsyncDisposableStack();
let alerts: Alert[];
let ctHome = '';
let image = '';
let client: HostClient;

before(async () => {
  const scratch = cleanup.use(scratchDirectory());
  chmodSync(scratch.path, 0o755); // link processes are other users
  ctHome = join(scratch.path, 'home');
  mkdirSync(join(ctHome, 'policy'), { recursive: true, mode: 0o755 });
  const links = join(ctHome, 'links');
  mkdirSync(links, { mode: 0o700 });
  writeFileSync(
    join(ctHome, 'policy/data.yml'),
    `version: 1
audit: required
egress: {mode: enforce, allow: []}
admission: {trust: [local], repositories: ['*'], refs: ['*'], actors: ['*'], images: ['*']}
limits: {cpus: 4, memory: 4G, disk: 4G, timeout: 1h}
`,
    { mode: 0o600 },
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

interface Ended {
  readonly result: JobResult;
  readonly detail: RunDetail;
  readonly events: readonly RunEvent[];
  readonly output: string;
  readonly tookMs: number;
}

async function run(script: string, cpus = 1): Promise<Ended> {
  const events: RunEvent[] = [];
  let output = '';
  const startedAt = performance.now();
  const result = await client.runJob(
    {
      name: 'job',
      image,
      cpus,
      memoryMib: 512,
      diskMib: 2048,
      env: {},
      steps: [
        { name: 'step', argv: ['sh', '-c', script], env: {}, workingDirectory: '.', condition: 'success' },
      ],
      timeoutMs: 120_000,
      artifacts: [],
      sendsTree: false,
    },
    {
      onEvent: (event) => void events.push(event),
      onOutput: (_, __, bytes) => {
        output += bytes.toString('latin1');
      },
      signal: new AbortController().signal,
    },
  );
  const tookMs = performance.now() - startedAt;
  return { result, detail: await client.run('latest'), events, output, tookMs };
}

async function proved({ detail }: Ended): Promise<AuditSeal> {
  const directory = join(ctHome, 'audit', detail.run);
  const trust = await trustKeyFile(join(ctHome, 'keys/host.pub'));
  const verdict = await verifyAudit({ directory, run: detail.run, trust, now: new Date() });
  assert.ok(verdict.status === 'proved', JSON.stringify(verdict));
  return verdict.seal;
}

async function eventsOf({ detail }: Ended): Promise<AuditEvent[]> {
  const events: AuditEvent[] = [];
  for await (const event of readAudit(join(ctHome, 'audit', detail.run))) events.push(event);
  return events;
}

test('what a job does is on record to its last system call, and proved', async () => {
  const ended = await run('echo begin; /bin/true; cat /etc/hostname >/dev/null; echo end', 2);
  assert.deepEqual(ended.result, { outcome: 'success', exitCode: 0 }, ended.output);
  assert.equal(ended.detail.audit?.state, 'complete', JSON.stringify(ended.detail.audit));
  const seal = await proved(ended);
  assert.deepEqual([seal.image, seal.imageMade, seal.imageSigners], [image, 'built', []]);
  const events = await eventsOf(ended);
  const binaries = events.flatMap((event) => (event.kind === 'exec' ? [event.binary] : []));
  assert.ok(
    binaries.some((path) => path.endsWith('/true')),
    binaries.join(),
  );
  const shell = events.find((event) => event.kind === 'exec' && event.args.includes('-c'));
  assert.ok(shell?.kind === 'exec' && shell.args.some((arg) => arg.includes('echo end')));
  assert.ok(
    events.some((event) => event.kind === 'exit' && event.process.pid === shell.process.pid),
    'the exit of the step is not on record',
  );
  assert.equal(alerts.length, 0);
  console.log(`${ended.detail.audit?.records} records; the run took ${ended.tookMs.toFixed(0)} ms`);
});

test('a million system calls at full speed: none is missing', async () => {
  const calls = 500_000; // a read and a write each
  const ended = await run(`dd if=/dev/zero of=/dev/null bs=1 count=${calls} 2>&1`);
  assert.equal(ended.result.outcome, 'success', ended.output);
  await proved(ended);
  assert.ok((ended.detail.audit?.records ?? 0) >= 2 * calls, JSON.stringify(ended.detail.audit));
  console.log(
    `${ended.detail.audit?.records} records, ${ended.detail.audit?.bytes} bytes, ${ended.tookMs.toFixed(0)} ms`,
  );
});

test('a job that reads keys is an alert while it goes on', async () => {
  alerts.length = 0;
  let alertedMs = Number.POSITIVE_INFINITY;
  const startedAt = performance.now();
  const watch = setInterval(() => {
    if (alerts.length > 0) alertedMs = Math.min(alertedMs, performance.now() - startedAt);
  }, 10);
  const ended = await run('mkdir -p ~/.ssh && echo key >~/.ssh/id_rsa && cat ~/.ssh/id_rsa && sleep 4');
  clearInterval(watch);
  assert.equal(ended.result.outcome, 'success', ended.output);
  assert.deepEqual(
    [...new Set(alerts.map(({ rule, action }) => `${rule} ${action}`))],
    ['ct.detect.credentials recorded'],
  );
  assert.ok(ended.tookMs - alertedMs > 2500, `alert after ${alertedMs} of ${ended.tookMs} ms`);
  assert.match(alerts[0]?.process?.binary ?? '', /cat$/);
  await proved(ended);
});

test('a job whose record nobody wants is not held up by it, however many calls it makes', async () => {
  const data = join(ctHome, 'policy/data.yml');
  const before = readFileSync(data, 'utf8');
  writeFileSync(data, before.replace('audit: required', 'audit: off'), { mode: 0o600 });
  try {
    const ended = await run('dd if=/dev/zero of=/dev/null bs=1 count=200000 2>&1');
    assert.equal(ended.result.outcome, 'success', ended.output);
    assert.equal(ended.detail.audit?.state, 'off');
  } finally {
    writeFileSync(data, before, { mode: 0o600 });
  }
});
