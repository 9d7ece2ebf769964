import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../../core/errors.ts';
import type { JobEnd } from '../../job/schedule.ts';
import type { JobResult, RunEvent } from '../../protocol/run.ts';
import type { Sink, Stream } from '../output.ts';
import { CommandRenderer } from './command.ts';
import {
  formatBytes,
  formatElapsed,
  formatError,
  formatInternalError,
  styleFor,
  UNSTYLED,
} from './format.ts';
import { LinePrefixer, MAX_LINE_BYTES } from './line-prefixer.ts';
import { RawJsonRenderer } from './raw-json.ts';
import { exitStatusOf, JobRecord, reportOf } from './record.ts';
import type { Renderer } from './renderer.ts';
import { formatTable } from './table.ts';
import { Terminal } from './terminal.ts';
import { TextRenderer } from './text.ts';

class Paper implements Sink {
  readonly isTty = { stdout: false, stderr: false };
  readonly pieces: [Stream, string][] = [];

  write(stream: Stream, data: string | Uint8Array): undefined {
    this.pieces.push([stream, typeof data === 'string' ? data : Buffer.from(data).toString('latin1')]);
  }

  text(stream?: Stream): string {
    return this.pieces
      .filter(([to]) => stream === undefined || to === stream)
      .map(([, text]) => text)
      .join('');
  }
}

const ran = (result: JobResult): JobEnd => ({ state: 'ran', result });
const SUCCESS: JobResult = { outcome: 'success', exitCode: 0 };

function job(name: string, ...steps: string[]): JobRecord {
  const rest = { argv: [], env: {}, workingDirectory: '', condition: 'success' as const };
  return new JobRecord(
    { name, image: 'debian-12', steps: steps.map((step) => ({ name: step, ...rest })) },
    0,
  );
}

function play(renderer: Renderer, record: JobRecord, events: (RunEvent | [Stream, number, string])[]): void {
  for (const event of events) {
    if (Array.isArray(event)) {
      renderer.output(record, event[0], event[1], Buffer.from(event[2], 'latin1'));
    } else {
      record.take(event, 0);
      renderer.event(record, event);
    }
  }
}

const CLAIMED: RunEvent = {
  type: 'claimed',
  source: 'clone',
  accelerator: 'tcg',
  vmm: 'QEMU 7.2.22',
  claimMs: 84,
};
const start = (step: number, name: string): RunEvent => ({ type: 'step-start', step, name });
const end = (step: number, name: string, rest: Partial<RunEvent & { type: 'step-end' }> = {}): RunEvent => ({
  type: 'step-end',
  step,
  name,
  outcome: 'success',
  exitCode: 0,
  durationMs: 1234,
  ...rest,
});

test('one job: its bytes pass untouched, lines of ours go to stderr and start on a line of their own', () => {
  const paper = new Paper();
  const renderer = new TextRenderer(new Terminal(paper, { live: false }), {
    jobNames: ['build'],
    stdoutTo: 'stdout',
  });
  const record = job('build', 'compile', 'test');
  renderer.jobStart(record);
  play(renderer, record, [
    CLAIMED,
    start(0, 'compile'),
    ['stdout', 0, '\x1b[1mcc\x1b[0m \xff\x00 no newline'],
    end(0, 'compile'),
    start(1, 'te\x1b[2Jst\nx'),
    ['stderr', 1, 'boom\n'],
    end(1, 'test', { outcome: 'failure', exitCode: 2, hint: 'there is no network' }),
  ]);
  const failed = ran({ outcome: 'failure', exitCode: 2, error: { code: 'JOB_FAILED', message: 'no' } });
  record.finish(failed, 5000);
  renderer.jobEnd(record, failed);
  renderer.end({ jobs: [record], durationMs: 5000, exitStatus: 1 });
  assert.equal(paper.text('stdout'), '\x1b[1mcc\x1b[0m \xff\x00 no newline');
  assert.ok(paper.text().includes('no newline\n'), 'our next line does not continue that of the job');
  const lines = paper.text('stderr');
  assert.match(
    lines,
    /microVM restored from its template in 84 ms .*software emulation, not a security boundary/,
  );
  assert.match(lines, /▶ compile\n/);
  assert.match(lines, /✓ compile \(1\.2 s\)\n/);
  assert.match(lines, /▶ te\[2Jst x\n/, 'control characters in a name do not reach the terminal');
  assert.match(lines, /boom\n✗ test \(exit code 2, 1\.2 s\)\n {2}hint: there is no network\n/);
  assert.match(lines, /✗ build failed \(5\.0 s\)\n$/);
});

test('several jobs: whole lines behind the name of their job, and a summary', () => {
  const paper = new Paper();
  const renderer = new TextRenderer(new Terminal(paper, { live: false }), {
    jobNames: ['a', 'test'],
    stdoutTo: 'stdout',
  });
  const [a, b] = [job('a', 's'), job('test', 's')];
  renderer.jobStart(a);
  renderer.jobStart(b);
  play(renderer, a, [start(0, 's'), ['stdout', 0, 'one\ntw']]);
  play(renderer, b, [start(0, 's'), ['stdout', 0, 'x\n']]);
  play(renderer, a, [['stdout', 0, 'o\nrest'], end(0, 's')]);
  for (const record of [a, b]) {
    record.finish(ran(SUCCESS), 1000);
    renderer.jobEnd(record, ran(SUCCESS));
  }
  renderer.end({ jobs: [a, b], durationMs: 1000, exitStatus: 0 });
  const lines = Buffer.from(paper.text('stdout'), 'latin1').toString('utf8');
  assert.equal(lines, 'a    │ one\ntest │ x\na    │ two\na    │ rest\n');
  assert.match(paper.text('stderr'), /a {4}│ ▶ s\n/);
  assert.match(paper.text('stderr'), /✓ 2 jobs: 2 passed, 0 failed \(1\.0 s\)\n$/);
});

test('an infrastructure error is shown with its hint and without control characters', () => {
  const paper = new Paper();
  const renderer = new TextRenderer(new Terminal(paper, { live: false }), {
    jobNames: ['a'],
    stdoutTo: 'stderr',
  });
  const record = job('a', 's');
  const error = { code: 'VMM_DIED', message: 'it died\n\x1b]0;title\x07console', hint: 'again' } as const;
  record.finish(ran({ outcome: 'infrastructure', exitCode: 125, error }), 10);
  renderer.jobEnd(record, ran({ outcome: 'infrastructure', exitCode: 125, error }));
  assert.match(
    paper.text(),
    /error\[VMM_DIED\]: it died\n\]0;titleconsole\n {2}hint: again\n✗ a could not be run/,
  );
});

test('the -- form adds nothing of its own when all goes well and fast', () => {
  const paper = new Paper();
  const renderer = new CommandRenderer(new Terminal(paper, { live: false }));
  const record = job('command', 'true');
  renderer.jobStart(record);
  play(renderer, record, [CLAIMED, start(0, 'true'), ['stdout', 0, 'hi'], end(0, 'true')]);
  record.finish(ran(SUCCESS), 10);
  renderer.jobEnd(record, ran(SUCCESS));
  renderer.end();
  assert.deepEqual(paper.pieces, [['stdout', 'hi']]);
});

test('the -- form says on stderr what failed and why', () => {
  const paper = new Paper();
  const renderer = new CommandRenderer(new Terminal(paper, { live: false }));
  const record = job('command', 'apt');
  play(renderer, record, [end(0, 'apt', { outcome: 'failure', exitCode: 100, hint: 'no network' })]);
  const timeout = ran({
    outcome: 'timeout',
    exitCode: 124,
    error: { code: 'JOB_TIMEOUT', message: 'too long' },
  });
  renderer.jobEnd(record, timeout);
  assert.equal(paper.text('stdout'), '');
  assert.equal(paper.text('stderr'), '  hint: no network\nerror[JOB_TIMEOUT]: too long\n');
});

test('rawjson: every line is JSON; characters split between chunks are joined, other bytes are base64', () => {
  const paper = new Paper();
  const renderer = new RawJsonRenderer(paper);
  const record = job('a', 's');
  renderer.jobStart(record);
  play(renderer, record, [
    CLAIMED,
    ['stdout', 0, 'gr\xc3'],
    ['stdout', 0, '\xbc\xc3\x9fe \xe2\x82'],
    ['stderr', 0, '\xff\xfe'],
    end(0, 's'),
  ]);
  record.finish(ran(SUCCESS), 10);
  renderer.jobEnd(record, ran(SUCCESS));
  renderer.end({ jobs: [record], durationMs: 10, exitStatus: 0 });
  const lines = paper
    .text('stdout')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  const outputs = lines
    .filter(({ type }) => type === 'output')
    .map(({ stream, text, base64 }) => [
      stream,
      text ?? Buffer.from(String(base64), 'base64').toString('latin1'),
    ]);
  assert.deepEqual(outputs, [
    ['stdout', 'gr'],
    ['stdout', 'üße '],
    ['stderr', '\xff\xfe'],
    ['stdout', '\xe2\x82'],
  ]);
  assert.deepEqual(
    lines.map(({ type }) => type).filter((type) => type !== 'output'),
    ['job-start', 'claimed', 'step-end', 'job-end', 'end'],
  );
  assert.equal(paper.text('stderr'), '');
});

test('a line that never ends is cut, so that memory stays bounded', () => {
  const prefixer = new LinePrefixer('p ', { reset: false });
  const chunk = Buffer.alloc(40_000, 'x');
  const out = Buffer.concat([...Array.from({ length: 10 }, () => prefixer.push(chunk)), prefixer.end()]);
  const lines = out.toString().trimEnd().split('\n');
  assert.equal(lines.length, Math.ceil(400_000 / MAX_LINE_BYTES));
  assert.equal(lines.map((line) => line.slice(2)).join('').length, 400_000);
  assert.ok(lines.every((line) => line.startsWith('p ') && line.length <= MAX_LINE_BYTES + 2));
});

test('colours that a line leaves on end before the next prefix', () => {
  const prefixer = new LinePrefixer('p ', { reset: true });
  assert.equal(
    prefixer.push(Buffer.from('\x1b[31mred\nplain\n')).toString(),
    'p \x1b[31mred\x1b[0m\np plain\n',
  );
});

test('exit statuses: the worst end counts, and the -- form passes on the code of its command', () => {
  const failure = ran({ outcome: 'failure', exitCode: 137 });
  const timeout = ran({ outcome: 'timeout', exitCode: 124 });
  const broken = ran({ outcome: 'infrastructure', exitCode: 125, error: { code: 'VMM_DIED', message: '' } });
  const tooLarge = ran({
    outcome: 'infrastructure',
    exitCode: 2,
    error: { code: 'RESOURCES_EXCEED_HOST', message: '' },
  });
  const violation = ran({ outcome: 'violation', exitCode: 122 });
  const skipped: JobEnd = { state: 'skipped', because: 'a' };
  assert.equal(exitStatusOf([], 'jobs'), 0);
  assert.equal(exitStatusOf([ran(SUCCESS), ran(SUCCESS)], 'jobs'), 0);
  assert.equal(exitStatusOf([ran(SUCCESS), failure, skipped], 'jobs'), 1);
  assert.equal(exitStatusOf([failure], 'command'), 137);
  assert.equal(exitStatusOf([failure, timeout], 'jobs'), 124);
  assert.equal(exitStatusOf([timeout, broken], 'jobs'), 125);
  assert.equal(exitStatusOf([tooLarge], 'command'), 2);
  assert.equal(exitStatusOf([broken, violation], 'jobs'), 122);
  assert.equal(exitStatusOf([failure, { state: 'cancelled' }], 'jobs'), 130);
});

test('the report says whether there was a security boundary, and what never ran', () => {
  const record = job('a', 'one', 'two');
  record.take(CLAIMED, 0);
  record.take(start(0, 'one'), 0);
  record.finish(ran({ outcome: 'cancelled', exitCode: 130 }), 20);
  const report = JSON.parse(JSON.stringify(reportOf({ jobs: [record], durationMs: 20, exitStatus: 130 })));
  assert.equal(report.exitStatus, 130);
  assert.equal(report.jobs[0].vm.securityBoundary, false);
  assert.deepEqual(
    report.jobs[0].steps.map(({ outcome }: { outcome: string }) => outcome),
    ['cancelled', 'skipped'],
  );
});

test('durations, sizes, errors and tables read well', () => {
  assert.deepEqual([0.4, 84.2, 999.6, 2140, 59_960, 185_000, 7_300_000].map(formatElapsed), [
    '0 ms',
    '84 ms',
    '1.0 s',
    '2.1 s',
    '1 min 0 s',
    '3 min 5 s',
    '2 h 1 min',
  ]);
  assert.deepEqual([0, 999, 1000, 3_440_000, 12e9].map(formatBytes), [
    '0 B',
    '999 B',
    '1.0 KB',
    '3.4 MB',
    '12 GB',
  ]);
  assert.equal(
    formatError({ code: 'USAGE', message: 'a\x1b[2J', hint: 'one\ntwo' }, UNSTYLED),
    'error[USAGE]: a[2J\n  hint: one\n        two\n',
  );
  assert.equal(
    formatTable([
      ['A', 'LONG'],
      ['bbb', 'c'],
    ]),
    'A    LONG\nbbb  c\n',
  );
  assert.equal(styleFor(true, { NO_COLOR: '1' }), UNSTYLED);
});

test('an INTERNAL error asks for a report, and shows its stack and causes only for CT_DEBUG', () => {
  const error = new CtError('INTERNAL', 'oops', { cause: new TypeError('deep') });
  const quiet = formatInternalError(error, UNSTYLED, false);
  assert.match(
    quiet,
    /^error\[INTERNAL\]: oops\n {2}hint: this is a bug in ct; please report it .*CT_DEBUG=1/,
  );
  assert.doesNotMatch(quiet, / at /);
  assert.match(
    formatInternalError(error, UNSTYLED, true),
    /\n {4}at [\s\S]*caused by: TypeError: deep\n {4}at /,
  );
});

const ADMITTED: RunEvent = {
  type: 'admitted',
  policy: `sha256:${'ab'.repeat(32)}`,
  mode: 'enforce',
  presets: [{ name: 'npm', destinations: ['mirror.example:443'], source: '/etc/npmrc\u001b[2J' }],
  image: {
    name: 'debian-12',
    digest: `sha256:${'cd'.repeat(32)}`,
    made: 'elsewhere',
    signers: ['release\u001b[2J'],
    policy: 'ab',
    allowed: true,
  },
};
const DENIED: RunEvent = {
  type: 'network',
  action: 'denied',
  host: 'other.example',
  port: 443,
  rule: 'ct.egress.not_allowed',
  message: 'the job asked for other.example\n\u001b[2J, and nothing allows it',
  hint: 'add `other.example` to `network: allow` of ct.yml',
};
const VIOLATION: JobResult = {
  outcome: 'violation',
  exitCode: 122,
  error: {
    code: 'POLICY_VIOLATION',
    message: 'evil.example is banned (rule ct.egress.banned); the job was ended',
  },
};

test('a job shows its policy, its presets and what was denied, and at its end what ended it, once', () => {
  const paper = new Paper();
  const renderer = new TextRenderer(new Terminal(paper, { live: false }), {
    jobNames: ['a'],
    stdoutTo: 'stdout',
  });
  const record = job('a', 'one');
  play(renderer, record, [
    { type: 'queued', run: 'r1' },
    ADMITTED,
    DENIED,
    { ...DENIED, action: 'recorded', host: 'seen.example', message: 'seen' },
    { type: 'unreached', host: 'gone.example', port: 443, message: 'no such\nhost' },
    { ...DENIED, action: 'terminated', message: 'evil.example is banned' },
  ]);
  renderer.jobEnd(record, ran(VIOLATION));
  assert.equal(
    paper.text('stderr'),
    [
      '• image debian-12 cdcdcdcdcdcd: from elsewhere, signed by release[2J',
      '• admitted by policy abababababab; network: enforce',
      '• npm is mirror.example:443 (/etc/npmrc[2J)',
      'denied: the job asked for other.example [2J, and nothing allows it (rule ct.egress.not_allowed)',
      '  hint: add `other.example` to `network: allow` of ct.yml',
      '• not blocked, only recorded: seen (rule ct.egress.not_allowed)',
      'not reached: gone.example port 443: no such host',
      'error[POLICY_VIOLATION]: evil.example is banned (rule ct.egress.banned); the job was ended',
      '• every decision of the run: ct policy explain r1',
      '✗ a was stopped for a policy violation',
      '',
    ].join('\n'),
  );
  record.finish(ran(VIOLATION), 1);
  const report = JSON.parse(JSON.stringify(reportOf({ jobs: [record], durationMs: 1, exitStatus: 122 })));
  assert.deepEqual(report.jobs[0].policy.mode, 'enforce');
  assert.deepEqual(
    report.jobs[0].network.map(({ action, host }: { action: string; host: string }) => [action, host]),
    [
      ['denied', 'other.example'],
      ['recorded', 'seen.example'],
      ['terminated', 'other.example'],
    ],
  );
});

test('a step that did not come to its end says what ended it, and no exit code that it never had', () => {
  const line = (...before: RunEvent[]): string => {
    const paper = new Paper();
    const renderer = new TextRenderer(new Terminal(paper, { live: false }), {
      jobNames: ['a'],
      stdoutTo: 'stdout',
    });
    play(renderer, job('a', 'one'), [
      ...before,
      { type: 'step-end', step: 0, name: 'one', outcome: 'failure', durationMs: 1234 },
    ]);
    return paper.text('stderr').split('\n').at(-2) ?? '';
  };
  assert.match(line({ ...DENIED, action: 'terminated' }), /^✗ one \(ended by policy, /);
  assert.match(line(DENIED), /^✗ one \(ended with its VM, /);
});

test('a command is told of what was denied and what ended it, and of nothing else', () => {
  const paper = new Paper();
  const renderer = new CommandRenderer(new Terminal(paper, { live: false }));
  const record = job('command', 'curl');
  play(renderer, record, [
    { type: 'queued', run: 'r1' },
    ADMITTED,
    { ...DENIED, action: 'recorded' },
    { ...DENIED, message: 'no' },
    { ...DENIED, action: 'terminated' },
  ]);
  renderer.jobEnd(record, ran(VIOLATION));
  assert.equal(
    paper.text(),
    [
      'denied: no (rule ct.egress.not_allowed)',
      '  hint: add `other.example` to `network: allow` of ct.yml',
      'error[POLICY_VIOLATION]: evil.example is banned (rule ct.egress.banned); the job was ended',
      'ct: every decision of the run: ct policy explain r1',
      '',
    ].join('\n'),
  );
});

const CODE: RunEvent = {
  type: 'code',
  action: 'denied',
  path: '/workspace/tool',
  rule: 'ct.exec.unsigned',
  message: 'bash tried to run /workspace/tool\n\u001b[2J, for which nothing vouches',
  hint: 'sign it',
};

test('refused code is told at once, code that is only recorded at the end of its job, to people and commands', () => {
  const events: RunEvent[] = [
    CODE,
    { ...CODE, action: 'recorded', message: 'bash ran a' },
    { ...CODE, action: 'recorded', message: 'bash ran b' },
    { ...CODE, action: 'terminated', message: 'never shown: the result says it' },
  ];
  const end = ran({ outcome: 'success', exitCode: 0 });
  const said = [
    'denied: bash tried to run /workspace/tool [2J, for which nothing vouches (rule ct.exec.unsigned)',
    '  hint: sign it',
    'these 2 would be refused if `exec` were not only `audit`:',
    '  bash ran a (rule ct.exec.unsigned)',
    '  bash ran b (rule ct.exec.unsigned)',
  ];
  const texts = new Paper();
  const text = new TextRenderer(new Terminal(texts, { live: false }), {
    jobNames: ['a'],
    stdoutTo: 'stdout',
  });
  const first = job('a', 'one');
  play(text, first, events);
  text.jobEnd(first, end);
  assert.equal(texts.text('stderr'), [...said, '✓ a passed', ''].join('\n'));
  const commands = new Paper();
  const command = new CommandRenderer(new Terminal(commands, { live: false }));
  const second = job('command', 'x');
  play(command, second, events);
  command.jobEnd(second, end);
  assert.equal(commands.text(), [...said, ''].join('\n'));
});

test('a job that policy does not let in ends with the status of policy', () => {
  const error = { code: 'POLICY_DENIED', message: 'no' } as const;
  assert.equal(exitStatusOf([ran({ outcome: 'infrastructure', exitCode: 122, error })], 'jobs'), 122);
  assert.equal(exitStatusOf([ran(VIOLATION)], 'command'), 122);
});
