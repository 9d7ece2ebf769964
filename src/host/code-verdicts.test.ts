import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Candidate } from '../audit/detection/candidates.ts';
import type { CtError } from '../core/errors.ts';
import type { DetectInput, Finding } from '../policy/detection.ts';
import type { RunEvent } from '../protocol/run.ts';
import { CodeVerdicts } from './code-verdicts.ts';

const META = { path: 'ct/detect/decision', revision: 'r', evaluation_ns: 1 };

function denied(path: string, what = 'exec', refused = true): Candidate {
  const process = { binary: '/usr/bin/bash', program: 'bash', uid: 1000, sockets: [], connections: [] };
  const event = { kind: 'denied', denied: { what, path, refused, args: [] }, process } as const;
  return { event, timeNs: 1n, process: { pid: 5, startedNs: 1n } };
}

function finding(event: number, action: Finding['action'], rule = 'ct.exec.unsigned'): Finding {
  return { event, rule, severity: 'high', message: `it was refused`, hint: 'sign it', action };
}

function question(batch: readonly Candidate[], mode: 'audit' | 'enforce' | 'terminate'): DetectInput {
  const code = { mode, trust: { source: true, built: true } };
  return {
    version: 1,
    run: { job: 'j', trust: 'local' },
    baseline: null,
    code,
    events: batch.map(({ event }) => event),
  };
}

class Judged {
  readonly told: RunEvent[] = [];
  readonly ends: CtError[] = [];
  readonly recorded: [DetectInput, Finding][] = [];
  readonly #verdicts: CodeVerdicts;

  constructor(record?: () => void) {
    this.#verdicts = new CodeVerdicts({
      run: 'r1',
      record: (input, found) => {
        record?.();
        this.recorded.push([input, found]);
      },
    });
  }

  take(
    batch: readonly Candidate[],
    findings: readonly Finding[] | undefined,
    mode: 'audit' | 'enforce' | 'terminate' = 'enforce',
  ): void {
    const run = {
      tell: (event: RunEvent) => void this.told.push(event),
      terminate: (error: CtError) => void this.ends.push(error),
    };
    this.#verdicts.take(question(batch, mode), batch, { findings, meta: META }, run);
  }
}

test('what is found is told and put on record once for each file, as one decision about one event', () => {
  const judged = new Judged();
  const batch = [denied('/a'), denied('/b')];
  judged.take(batch, [finding(0, 'alert'), finding(1, 'record')]);
  judged.take(batch, [finding(0, 'alert')]);
  assert.deepEqual(
    judged.told.map((event) => event.type === 'code' && [event.action, event.path, event.hint]),
    [
      ['denied', '/a', 'sign it'],
      ['recorded', '/b', 'sign it'],
    ],
  );
  assert.deepEqual(
    judged.recorded.map(([{ events }, { event }]) => [events, event]),
    [
      [[batch[0]?.event], 0],
      [[batch[1]?.event], 0],
    ],
  );
  assert.deepEqual(judged.ends, []);
});

test('what ends the run ends it with the rule, the reason and the next step, whatever was said before', () => {
  const judged = new Judged();
  judged.take([denied('/a')], [finding(0, 'alert')]);
  judged.take([denied('/a')], [finding(0, 'terminate')], 'terminate');
  const [end] = judged.ends;
  assert.equal(end?.code, 'POLICY_VIOLATION');
  assert.match(String(end?.message), /it was refused: the job was ended by the rule ct\.exec\.unsigned/);
  assert.equal(end?.hint, 'sign it');
});

test('a decision log that is full keeps no run alive', () => {
  const judged = new Judged(() => {
    throw new Error('full');
  });
  judged.take([denied('/a')], [finding(0, 'terminate')], 'terminate');
  assert.equal(judged.ends.length, 1);
});

test('no answer about refused code ends a run in mode terminate, and no other', () => {
  const [code, other] = [denied('/a'), denied('', 'bpf')];
  for (const [mode, batch, ends] of [
    ['terminate', [code], 1],
    ['terminate', [other], 0],
    ['terminate', [denied('/a', 'exec', false)], 0],
    ['enforce', [code], 0],
  ] as const) {
    const judged = new Judged();
    judged.take(batch, undefined, mode);
    assert.equal(judged.ends.length, ends, mode);
  }
});

test('the log of a job is bounded, and says where the rest is', () => {
  const judged = new Judged();
  for (let file = 0; file < 500; file += 1) judged.take([denied(`/${file}`)], [finding(0, 'alert')]);
  assert.equal(judged.told.length, 101);
  const last = judged.told.at(-1);
  assert.match(last?.type === 'notice' ? last.message : '', /ct audit show r1/);
});

test('findings of other packages are none of its business', () => {
  const judged = new Judged();
  judged.take([denied('/a')], [finding(0, 'terminate', 'ct.detect.miner')], 'terminate');
  assert.deepEqual([judged.told, judged.ends], [[], []]);
});
