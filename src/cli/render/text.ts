/** `--progress=plain` and `tty`: step headers, the job's own bytes, and how each step ended. */
import { printable } from '../../core/bounded-tail.ts';
import type { JobEnd } from '../../job/schedule.ts';
import type { RunEvent, StepOutcome, VmSource } from '../../protocol/run.ts';
import type { Stream } from '../output.ts';
import { formatBytes, formatElapsed, formatError, formatHint, oneLine } from './format.ts';
import { LinePrefixer } from './line-prefixer.ts';
import { admittedLines, explainHint, noticeLines, recordedCodeLines, unreachedLine } from './network.ts';
import type { JobRecord, RunRecord, StepRecord } from './record.ts';
import type { Renderer } from './renderer.ts';
import type { Terminal } from './terminal.ts';

/** Below this, that the tree was sent is not worth a line. */
const STAGE_WORTH_A_LINE_MS = 1000;
/** How a microVM came to be, before "in 0.1 s". */
const HOW: Readonly<Record<VmSource, string>> = {
  'warm-clone': 'ready',
  clone: 'restored from its template',
  'cold-boot': 'booted',
};

export class TextRenderer implements Renderer {
  readonly #terminal: Terminal;
  readonly #jobs: JobRecord[] = [];
  readonly #prefixes: ReadonlyMap<string, string>;
  readonly #prefixers = new Map<string, LinePrefixer>();
  /** Where the job's stdout goes: our stderr if our stdout is for a document. */
  readonly #stdout: Stream;
  #progress: string | undefined;

  constructor(
    terminal: Terminal,
    options: { readonly jobNames: readonly string[]; readonly stdoutTo: Stream },
  ) {
    this.#terminal = terminal;
    this.#stdout = options.stdoutTo;
    const width = Math.max(...options.jobNames.map((name) => name.length));
    // One job needs no name before its lines, and its bytes pass untouched.
    this.#prefixes = new Map(
      options.jobNames.length === 1 ? [] : options.jobNames.map((name) => [name, `${name.padEnd(width)} │ `]),
    );
    terminal.showStatus(() => this.#status());
  }

  progress(what: string, milestone: boolean): void {
    this.#progress = what;
    if (milestone && !this.#terminal.live)
      this.#terminal.line(this.#terminal.style.dim(`• ${oneLine(what)}`));
  }

  imageNotice(lines: readonly string[]): void {
    for (const line of lines) this.#terminal.line(printable(line));
  }

  jobStart(job: JobRecord): void {
    this.#progress = undefined;
    this.#jobs.push(job);
  }

  event(job: JobRecord, event: RunEvent): void {
    const { dim, bold } = this.#terminal.style;
    switch (event.type) {
      case 'queued':
        if (event.reason !== undefined) this.#line(job, dim(`• ${oneLine(event.reason)}`));
        return;
      case 'admitted':
        for (const line of admittedLines(event)) this.#line(job, dim(`• ${line}`));
        return;
      case 'network':
        if (event.action !== 'terminated') this.#line(job, noticeLines(event, this.#terminal.style));
        return;
      case 'unreached':
        this.#line(job, unreachedLine(event, this.#terminal.style));
        return;
      case 'code':
        if (event.action === 'denied') this.#line(job, noticeLines(event, this.#terminal.style));
        return;
      case 'verified':
        for (const fact of event.facts) this.#line(job, dim(`• ${oneLine(fact)}`));
        return;
      case 'preparing':
        this.#line(job, dim(`• ${oneLine(job.phase)}`));
        return;
      case 'claimed': {
        const how = HOW[event.source];
        const where = event.accelerator === 'kvm' ? 'KVM' : 'software emulation, not a security boundary';
        this.#line(
          job,
          dim(`• microVM ${how} in ${formatElapsed(event.claimMs)} (${oneLine(event.vmm)}, ${where})`),
        );
        return;
      }
      case 'staged':
        if (event.durationMs > STAGE_WORTH_A_LINE_MS) {
          const size = formatBytes(event.bytes);
          this.#line(job, dim(`• working tree sent: ${size} in ${formatElapsed(event.durationMs)}`));
        }
        return;
      case 'step-start':
        this.#line(job, bold(`▶ ${oneLine(event.name)}`));
        return;
      case 'step-end':
        this.#stepEnd(job, event.step);
        return;
      case 'notice':
        this.notice(job, event.level, event.message);
        return;
      case 'shell':
        this.#line(job, dim(`• ${shellWords(event)}`));
        return;
      case 'shell-offer':
      case 'evidence':
      case 'secrets-wanted':
      case 'collected':
      case 'destroyed':
      case 'done':
        return;
    }
  }

  notice(job: JobRecord, level: 'info' | 'warning', message: string): void {
    const { dim, yellow } = this.#terminal.style;
    this.#line(
      job,
      level === 'info' ? dim(`• ${oneLine(message)}`) : `${yellow('warning')}: ${oneLine(message)}`,
    );
  }

  output(job: JobRecord, stream: Stream, _step: number, bytes: Buffer): undefined | Promise<void> {
    const target = stream === 'stdout' ? this.#stdout : stream;
    const prefix = this.#prefixes.get(job.name);
    if (prefix === undefined) return this.#terminal.raw(target, bytes);
    return this.#terminal.raw(target, this.#prefixer(job, prefix, stream).push(bytes));
  }

  jobEnd(job: JobRecord, end: JobEnd): void {
    this.#flushLines(job);
    const { style } = this.#terminal;
    const { red, green, dim } = style;
    const took = job.durationMs === undefined ? '' : dim(` (${formatElapsed(job.durationMs)})`);
    if (end.state === 'skipped') {
      this.#line(job, dim(`- ${job.name} skipped: it needs ${oneLine(end.because)}`));
      return;
    }
    if (end.state === 'cancelled') {
      this.#line(job, `${red('✗')} ${job.name} cancelled before it started`);
      return;
    }
    const { outcome, error } = end.result;
    if (job.artifacts && job.artifacts.files > 0) {
      const { files, bytes, directory } = job.artifacts;
      this.#line(
        job,
        dim(
          `• artifacts: ${files} ${files === 1 ? 'file' : 'files'}, ${formatBytes(bytes)}, in ${directory}`,
        ),
      );
    }
    for (const line of recordedCodeLines(job.code, style)) this.#line(job, line);
    // A step that failed has said so; the error repeats it only where it knows more.
    if (error && outcome !== 'failure') this.#line(job, formatError(error, style));
    const explain = explainHint(end, job.run);
    if (explain !== undefined) this.#line(job, dim(`• ${explain}`));
    const words = { ...OUTCOME_WORDS, success: 'passed', failure: 'failed' };
    const mark = outcome === 'success' ? green('✓') : red('✗');
    this.#line(job, `${mark} ${job.name} ${words[outcome]}${took}`);
  }

  end(run: RunRecord): void {
    this[Symbol.dispose]();
    if (run.jobs.length < 2) return;
    const count = (outcome: string): number => run.jobs.filter((job) => job.outcome === outcome).length;
    const [passed, skipped] = [count('success'), count('skipped')];
    const failed = run.jobs.length - passed - skipped;
    const parts = [`${passed} passed`, `${failed} failed`, ...(skipped > 0 ? [`${skipped} skipped`] : [])];
    const { red, green, dim } = this.#terminal.style;
    const mark = run.exitStatus === 0 ? green('✓') : red('✗');
    this.#terminal.line(
      `${mark} ${run.jobs.length} jobs: ${parts.join(', ')}${dim(` (${formatElapsed(run.durationMs)})`)}`,
    );
  }

  [Symbol.dispose](): void {
    this.#terminal[Symbol.dispose]();
  }

  #stepEnd(job: JobRecord, index: number): void {
    this.#flushLines(job);
    const step = job.steps[index];
    if (!step) return;
    const { red, green, dim } = this.#terminal.style;
    const name = oneLine(step.name);
    if (step.state === 'skipped') {
      this.#line(job, dim(`- ${name} (skipped)`));
      return;
    }
    const failed = step.state !== 'success';
    const details = [describeEnd(step, job.isEndedByPolicy), formatElapsed(step.durationMs ?? 0)].filter(
      (part) => part !== '',
    );
    this.#line(job, `${failed ? red('✗') : green('✓')} ${name} ${dim(`(${details.join(', ')})`)}`);
    if (step.hint !== undefined) this.#line(job, formatHint(step.hint));
  }

  #line(job: JobRecord, text: string): void {
    const prefix = this.#prefixes.get(job.name) ?? '';
    const lines = text.replace(/\n$/, '').split('\n');
    this.#terminal.line(lines.map((line) => `${prefix}${line}\n`).join(''));
  }

  #prefixer(job: JobRecord, prefix: string, stream: Stream): LinePrefixer {
    const key = `${stream} ${job.name}`;
    let prefixer = this.#prefixers.get(key);
    if (!prefixer) {
      prefixer = new LinePrefixer(prefix, { reset: this.#terminal.live });
      this.#prefixers.set(key, prefixer);
    }
    return prefixer;
  }

  #flushLines(job: JobRecord): void {
    for (const stream of ['stdout', 'stderr'] as const) {
      const rest = this.#prefixers.get(`${stream} ${job.name}`)?.end();
      if (rest) void this.#terminal.raw(stream === 'stdout' ? this.#stdout : stream, rest);
    }
  }

  #status(): string | undefined {
    if (this.#progress !== undefined) return this.#progress;
    const running = this.#jobs.filter(({ end }) => !end);
    return running.map((job) => jobStatus(job, running.length > 1)).join(' · ') || undefined;
  }
}

const OUTCOME_WORDS = {
  timeout: 'timed out',
  cancelled: 'cancelled',
  infrastructure: 'could not be run',
  violation: 'was stopped for a policy violation',
} as const;

/** `build: compile, 12 s`. */
export function jobStatus(job: JobRecord, withName: boolean): string {
  const step = job.current;
  const what = step ? `${step.name}, ${runningFor(performance.now() - step.startedAt)}` : job.phase;
  return withName || !step ? `${job.name}: ${what}` : what;
}

/** In whole seconds: the line is drawn several times in each. */
function runningFor(milliseconds: number): string {
  return milliseconds < 60_000 ? `${Math.floor(milliseconds / 1000)} s` : formatElapsed(milliseconds);
}

/** `exit code 2`, `killed by signal 9`, `timed out`, or nothing for a success. */
export function describeEnd(
  step: Pick<StepRecord, 'exitCode' | 'signal'> & { readonly state: string },
  endedByPolicy: boolean,
): string {
  if (step.signal !== undefined && step.state === 'failure') return `killed by signal ${step.signal}`;
  const words: Partial<Record<StepOutcome, string>> = { timeout: 'timed out', cancelled: 'cancelled' };
  const word = words[step.state as StepOutcome];
  if (word !== undefined) return word;
  if (step.state === 'success') return '';
  // It did not come to its end by itself.
  if (step.exitCode === undefined) return endedByPolicy ? 'ended by policy' : 'ended with its VM';
  return `exit code ${step.exitCode}`;
}

function shellWords({ state, uid, exitCode }: Extract<RunEvent, { type: 'shell' }>): string {
  if (state === 'opened') return `user ${uid} opened a shell in the VM`;
  return exitCode === undefined ? 'a shell in the VM was cut off' : `a shell in the VM ended (${exitCode})`;
}
