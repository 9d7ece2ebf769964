/** The `--` form: the command's own bytes. A line of ours only if something takes long or went wrong, and on stderr. */
import { printable } from '../../core/bounded-tail.ts';
import type { JobEnd } from '../../job/schedule.ts';
import type { RunEvent } from '../../protocol/run.ts';
import type { Stream } from '../output.ts';
import { formatError, formatHint, oneLine } from './format.ts';
import { explainHint, noticeLines, recordedCodeLines, unreachedLine } from './network.ts';
import type { JobRecord } from './record.ts';
import type { Renderer } from './renderer.ts';
import type { Terminal } from './terminal.ts';
import { jobStatus } from './text.ts';

/** Nobody wants to hear of what takes less. */
const SLOW_MS = 1000;

export class CommandRenderer implements Renderer {
  readonly #terminal: Terminal;
  #job: JobRecord | undefined;
  #waiting: string | undefined;
  #timer: NodeJS.Timeout | undefined;
  #outputSeen = false;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    terminal.showStatus(() => (this.#outputSeen ? undefined : this.#status()));
  }

  progress(what: string, milestone: boolean): void {
    if (milestone) this.#announce(what);
    else this.#waiting = what;
  }

  imageNotice(lines: readonly string[]): void {
    for (const line of lines) this.#terminal.line(printable(line));
  }

  jobStart(job: JobRecord): void {
    this.#job = job;
    this.#announce(undefined);
  }

  event(job: JobRecord, event: RunEvent): void {
    if (event.type === 'queued' || event.type === 'preparing') this.#announce(job.phase);
    else if (event.type === 'step-start') this.#announce(undefined);
    else if (event.type === 'notice' && event.level === 'warning') this.notice(job, 'warning', event.message);
    else if ((event.type === 'network' || event.type === 'code') && event.action === 'denied')
      this.#terminal.line(noticeLines(event, this.#terminal.style));
    else if (event.type === 'unreached') this.#terminal.line(unreachedLine(event, this.#terminal.style));
    else if (event.type === 'step-end' && event.hint !== undefined)
      this.#terminal.line(formatHint(event.hint));
  }

  output(_job: JobRecord, stream: Stream, _step: number, bytes: Buffer): undefined | Promise<void> {
    this.#outputSeen = true;
    return this.#terminal.raw(stream, bytes);
  }

  notice(_job: JobRecord, level: 'info' | 'warning', message: string): void {
    if (level === 'warning')
      this.#terminal.line(`${this.#terminal.style.yellow('warning')}: ${oneLine(message)}`);
  }

  jobEnd(job: JobRecord, end: JobEnd): void {
    this[Symbol.dispose]();
    for (const line of recordedCodeLines(job.code, this.#terminal.style)) this.#terminal.line(line);
    if (end.state !== 'ran' || !end.result.error) return;
    const { outcome, error } = end.result;
    if (outcome !== 'failure' && outcome !== 'success')
      this.#terminal.line(formatError(error, this.#terminal.style));
    const explain = explainHint(end, job.run);
    if (explain !== undefined) this.#terminal.line(`ct: ${explain}`);
  }

  end(): void {
    this[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#terminal[Symbol.dispose]();
  }

  /** Says so in a line if it is still true after a while; a live terminal shows it in the status line instead. */
  #announce(what: string | undefined): void {
    clearTimeout(this.#timer);
    this.#waiting = what;
    if (what === undefined || this.#terminal.live) return;
    this.#timer = setTimeout(() => this.#terminal.line(`ct: ${oneLine(what)}`), SLOW_MS);
  }

  #status(): string | undefined {
    return this.#waiting ?? (this.#job && jobStatus(this.#job, false));
  }
}
