/** What a link process keeps of its job while it streams: the log on disk, and a word to the daemon when it moves on. */
import type { Journal } from '../job/client-channel.ts';
import { RunLogWriter } from '../job/run-log.ts';
import type { JobRequest, RunEvent } from '../protocol/run.ts';
import type { LinkProgress } from './link-messages.ts';
import type { LinkState } from './run-state.ts';

/** Made when the job begins. Of states and steps it tells only what it sees pass by; nothing of what the guest wrote. */
export class LinkJournal implements Journal {
  readonly #log: RunLogWriter;
  readonly #request: JobRequest;
  readonly #tell: (progress: LinkProgress) => void;
  #state: LinkState | undefined;

  constructor(logDirectory: string, request: JobRequest, tell: (progress: LinkProgress) => void) {
    this.#log = new RunLogWriter(logDirectory);
    this.#request = request;
    this.#tell = tell;
    this.#enter(request.sendsTree ? 'staging' : 'running');
  }

  /** Why the log is not complete, if it is not. */
  get failure(): string | undefined {
    return this.#log.failure;
  }

  output(stream: 'stdout' | 'stderr', step: number, bytes: Buffer): void {
    this.#log.output(stream, step, bytes);
  }

  event(event: RunEvent): void {
    this.#log.event(event);
    if (event.type === 'staged') this.#enter('running');
    if (event.type === 'step-start') {
      this.#enter('running');
      this.#tell({ type: 'step', step: event.step, state: 'running' });
    }
    if (event.type === 'step-end') {
      const { step, outcome, exitCode, durationMs } = event;
      this.#tell({
        type: 'step',
        step,
        state: outcome,
        ...(exitCode === undefined ? {} : { exitCode }),
        ...(outcome === 'skipped' ? {} : { durationMs }),
      });
      const wasLast = step === this.#request.steps.length - 1;
      if (wasLast && this.#request.artifacts.length > 0) this.#enter('collecting');
    }
  }

  #enter(state: LinkState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#tell({ type: 'state', state });
  }
}
