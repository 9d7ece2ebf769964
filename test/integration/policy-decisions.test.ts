import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { BoundedTail } from '../../src/core/bounded-tail.ts';
import { installRoot } from '../../src/core/install.ts';
import { SourceText } from '../../src/core/source-text.ts';
import { OpaClient } from '../../src/host/opa-client.ts';
import { onPath } from '../../src/host/policy-compiler.ts';
import { type PolicyData, parsePolicyData } from '../../src/policy/data.ts';
import type { AdmissionDecision } from '../../src/policy/decision.ts';
import { loadWasmEngine, type PolicyEngine } from '../../src/policy/engine.ts';
import type { ImageInput } from '../../src/policy/input.ts';
import {
  ADMISSION_CASES,
  type AdmissionCase,
  EGRESS_CASES,
  lowered,
  rulesOf,
  saidOf,
} from '../fixtures/policy/cases.ts';
import { scratchDirectory } from '../support/scratch.ts';

const opa = onPath('opa');

function fixtureData(): PolicyData {
  const path = join(installRoot, 'test/fixtures/policy/data.yml');
  return parsePolicyData(new SourceText('data.yml', readFileSync(path, 'utf8')), {
    resolvePreset: (name) => lowered([name]),
  });
}

function loadShipped(data: PolicyData): Promise<PolicyEngine> {
  return loadWasmEngine({
    wasm: readFileSync(join(installRoot, 'policies/policy.wasm')),
    config: data.config,
    revision: 'test',
    nowNs: () => process.hrtime.bigint(),
  });
}

/** Rules of what a run gets, each once, in order. */
function grantedRules(decision: AdmissionDecision): readonly string[] {
  return [...new Set(decision.network.allow.map((one) => one.rule))];
}

function checkAdmission(one: AdmissionCase, decision: AdmissionDecision): void {
  assert.deepEqual(rulesOf(decision), [...one.rules].sort());
  assert.equal(decision.allow, one.rules.length === 0);
  if (one.network === undefined) return;
  assert.deepEqual({ mode: decision.network.mode, allow: grantedRules(decision) }, one.network);
}

describe('the shipped policy, in-process', () => {
  let engine: PolicyEngine;
  before(async () => {
    engine = await loadShipped(fixtureData());
  });
  for (const one of EGRESS_CASES) {
    test(`egress: ${one.name}`, async () => {
      const { decision, meta } = await engine.decideEgress(one.input);
      const { action, allowedBy, rule } = one;
      const said = saidOf(decision);
      assert.deepEqual(
        said,
        {
          action,
          ...(allowedBy === undefined ? {} : { allowedBy }),
          ...(rule === undefined ? {} : { rule }),
        },
        JSON.stringify(decision),
      );
      assert.equal(meta.error, undefined);
    });
  }
  for (const one of ADMISSION_CASES) {
    test(`admission: ${one.name}`, async () => {
      const { decision, meta } = await engine.decideAdmission(one.input);
      checkAdmission(one, decision);
      assert.equal(meta.error, undefined);
    });
  }
  test('the table has enough cases, and each name once', () => {
    const names = [
      ...EGRESS_CASES.map((one) => `e ${one.name}`),
      ...ADMISSION_CASES.map((one) => `a ${one.name}`),
    ];
    assert.ok(names.length >= 150, String(names.length));
    assert.equal(new Set(names).size, names.length);
  });
});

describe('the same table, on an OPA server', {
  skip: opa === undefined && 'the program `opa` is not on PATH',
}, () => {
  let server: OpaServer;
  let client: OpaClient;
  let engine: PolicyEngine;
  before(async () => {
    const data = fixtureData();
    engine = await loadShipped(data);
    server = await startOpa(data.config);
    client = new OpaClient({ url: server.url, revision: 'test', timeoutMs: 10_000 });
  });
  after(async () => {
    client[Symbol.dispose]();
    await server.stop();
  });
  test('egress: every answer is the same, word for word', async () => {
    for (const one of EGRESS_CASES) {
      const { decision, meta } = await client.decideEgress(one.input);
      assert.deepEqual(decision, (await engine.decideEgress(one.input)).decision, one.name);
      assert.equal(meta.error, undefined, one.name);
    }
  });
  test('image: every answer is the same, word for word', async () => {
    for (const made of [null, { how: 'built', at: 1 }] as const) {
      const input: ImageInput = {
        version: 1,
        now: 60,
        run: { job: 'job', trust: 'local' },
        image: { name: 'ci', digest: 'sha256:1', made, base: [], lock: null, unlocked: true },
        signatures: [],
        attestations: [],
        refusal: null,
        scan: null,
      };
      const { decision, meta } = await client.decideImage(input);
      assert.deepEqual(decision, (await engine.decideImage(input)).decision);
      assert.equal(decision.allow, made !== null);
      assert.equal(meta.error, undefined);
    }
  });
  test('admission: every answer is the same, word for word', async () => {
    for (const one of ADMISSION_CASES) {
      const { decision, meta } = await client.decideAdmission(one.input);
      assert.deepEqual(decision, (await engine.decideAdmission(one.input)).decision, one.name);
      assert.equal(meta.error, undefined, one.name);
    }
  });
});

test('a server without the policy answers nothing, and that is a denial', {
  skip: opa === undefined && 'the program `opa` is not on PATH',
}, async () => {
  const server = await startOpa(undefined);
  using client = new OpaClient({ url: server.url, revision: 'test', timeoutMs: 10_000 });
  try {
    const input = EGRESS_CASES[0]?.input;
    assert.ok(input);
    const { decision, meta } = await client.decideEgress(input);
    assert.equal(decision.action, 'deny');
    assert.equal(decision.denial?.rule, 'ct.egress.error');
    assert.equal(meta.error, 'the answer is undefined');
  } finally {
    await server.stop();
  }
});

/** With rules and data; without `config`, with neither. */
async function startOpa(config: PolicyData['config'] | undefined): Promise<OpaServer> {
  const scratch = scratchDirectory();
  const dataFile = join(scratch.path, 'data.json');
  writeFileSync(dataFile, JSON.stringify({ ct: { config } }));
  const loaded =
    config === undefined ? [] : ['--ignore=*_test.rego', dataFile, join(installRoot, 'policies/ct')];
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const child = spawn(
    opa ?? 'opa',
    ['run', '--server', `--addr=127.0.0.1:${port}`, '--skip-version-check', ...loaded],
    { stdio: ['ignore', 'ignore', 'pipe'], env: { PATH: process.env['PATH'] ?? '', HOME: scratch.path } },
  );
  const log = new BoundedTail(4096);
  child.stderr.on('data', (chunk: Buffer) => log.push(chunk));
  const ended = new AbortController();
  const exited = new Promise<void>((resolve) =>
    child.once('close', () => {
      ended.abort();
      resolve();
    }),
  );
  const stop = async (): Promise<void> => {
    child.kill('SIGKILL');
    await exited;
    scratch[Symbol.dispose]();
  };
  const deadline = Date.now() + 20_000;
  while (!(await answers(`${url}/health`))) {
    if (ended.signal.aborted || Date.now() > deadline) {
      await stop();
      throw new Error(`opa did not start: ${log.text()}`);
    }
    await setTimeout(50);
  }
  return { url, stop };
}

interface OpaServer {
  readonly url: string;
  stop(): Promise<void>;
}

async function answers(url: string): Promise<boolean> {
  try {
    return (await fetch(url, { signal: AbortSignal.timeout(1000) })).ok;
  } catch {
    return false;
  }
}

/** OPA does not say which port it got, so it is told one. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
