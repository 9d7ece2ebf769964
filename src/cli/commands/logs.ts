/** `ct logs`: the stored log of a run, through the same renderings as `ct run`. */
import { CtError } from '../../core/errors.ts';
import { didYouMean } from '../../core/suggest.ts';
import type { HostClient, RunDetail } from '../../host/client.ts';
import { type LogEntry, readRunLog } from '../../job/run-log.ts';
import type { ParsedOptions } from '../command.ts';
import { anyHost } from '../host.ts';
import type { Output, Stream } from '../output.ts';
import { CommandRenderer } from '../render/command.ts';
import { formatBytes } from '../render/format.ts';
import { LinePrefixer } from '../render/line-prefixer.ts';
import { RawJsonRenderer } from '../render/raw-json.ts';
import { JobRecord } from '../render/record.ts';
import type { Renderer } from '../render/renderer.ts';
import { Terminal } from '../render/terminal.ts';
import { TextRenderer } from '../render/text.ts';

/** A follower looks at the log more often than it asks the daemon whether that can grow. */
const ASK_MS = 500;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const host = await anyHost();
  const detail = await host.run(parsed.positionals[0] ?? 'latest');
  const steps = selectSteps(detail, parsed);
  if (steps?.size === 0) {
    output.write('stderr', `no step of run ${detail.run} failed\n`);
    return 0;
  }
  using view = new LogView(output, detail, {
    steps,
    timestamps: parsed.has('timestamps'),
    json: parsed.has('json'),
  });
  const ended = parsed.has('follow') ? follower(host, detail) : () => true;
  for await (const entry of readRunLog(detail.logDirectory, ended)) {
    if (output.isBroken) return 0;
    await view.show(entry);
  }
  view.end(parsed.has('follow') ? await stateOf(host, detail) : detail);
  return 0;
}

/** Positions of the steps that were asked for; undefined for all. */
function selectSteps(detail: RunDetail, parsed: ParsedOptions): ReadonlySet<number> | undefined {
  if (!parsed.has('failed') && !parsed.has('step')) return undefined;
  const named = parsed.values('step').map((word) => stepPosition(detail, word));
  const failed = parsed.has('failed')
    ? [...detail.steps.entries()]
        .filter(([, { state }]) => !['waiting', 'running', 'success', 'skipped'].includes(state))
        .map(([position]) => position)
    : [...detail.steps.keys()];
  return new Set(failed.filter((position) => !parsed.has('step') || named.includes(position)));
}

function stepPosition({ run, steps }: RunDetail, word: string): number {
  const position = /^\d+$/.test(word) ? Number(word) - 1 : steps.findIndex(({ name }) => name === word);
  if (steps[position]) return position;
  const names = steps.map(({ name }) => name);
  throw new CtError('USAGE', `run ${run} has no step \`${word}\``, {
    hint: didYouMean(word, names) ?? `its steps are 1 to ${steps.length}; see: ct inspect ${run}`,
  });
}

function follower(host: HostClient, detail: RunDetail): () => Promise<boolean> {
  let askedAt = Number.NEGATIVE_INFINITY;
  return async () => {
    if (performance.now() - askedAt < ASK_MS) return false;
    askedAt = performance.now();
    return (await stateOf(host, detail)).state === 'ended';
  };
}

/** A daemon that is gone has taken its runs with it; what became of this one, the next daemon records. */
async function stateOf(host: HostClient, detail: RunDetail): Promise<RunDetail> {
  try {
    return await host.run(detail.run);
  } catch (error) {
    if (!(error instanceof CtError) || error.code !== 'HOST_UNREACHABLE') throw error;
    return await (await anyHost()).run(detail.run);
  }
}

interface LogViewOptions {
  /** Only these; then nothing of the VM and the job as a whole is shown. */
  readonly steps: ReadonlySet<number> | undefined;
  readonly timestamps: boolean;
  /** Lines of JSON, which all have the time. */
  readonly json: boolean;
}

class LogView implements Disposable {
  readonly #terminal: Terminal;
  readonly #renderer: Renderer;
  readonly #json: RawJsonRenderer | undefined;
  readonly #job: JobRecord;
  readonly #options: LogViewOptions;
  readonly #prefixers = new Map<string, LinePrefixer>();
  #timeMs = 0;

  constructor(output: Output, detail: RunDetail, options: LogViewOptions) {
    this.#options = options;
    this.#job = new JobRecord(
      {
        name: detail.job,
        image: detail.image.name ?? detail.image.digest,
        steps: detail.steps,
      },
      0,
    );
    this.#terminal = new Terminal(output, { live: false });
    // As `ct run -- CMD` names its only step; whoever ran that saw the bytes of the command and nothing else.
    const isCommand = detail.steps.length === 1 && detail.steps[0]?.name === detail.job;
    const time = (): object => ({ time: new Date(this.#timeMs).toISOString() });
    this.#json = options.json ? new RawJsonRenderer(output, time) : undefined;
    this.#timeMs = detail.createdAtMs;
    this.#renderer =
      this.#json ??
      (isCommand || options.steps?.size === 1
        ? new CommandRenderer(this.#terminal)
        : new TextRenderer(this.#terminal, { jobNames: [detail.job], stdoutTo: 'stdout' }));
    this.#renderer.jobStart(this.#job);
  }

  async show(entry: LogEntry): Promise<void> {
    if (entry.type === 'dropped') {
      this.#flush();
      if (this.#json) return this.#json.dropped(this.#job, entry.bytes);
      const amount = formatBytes(entry.bytes);
      this.#terminal.line(
        this.#terminal.style.yellow(`… ${amount} of output were not kept: the log was full …`),
      );
      return;
    }
    this.#timeMs = entry.timeMs;
    if (!this.#isWanted(entry)) return;
    if (entry.type === 'output') {
      const { stream, step } = entry;
      const prefixed = this.#options.timestamps && !this.#json;
      const bytes = prefixed ? this.#prefixer(stream, step).push(entry.bytes) : entry.bytes;
      await this.#renderer.output(this.#job, stream, step, bytes);
    } else {
      if (entry.event.type === 'step-end') this.#flush();
      this.#job.take(entry.event, entry.timeMs);
      this.#renderer.event(this.#job, entry.event);
    }
  }

  /** After the last entry; `detail` is what is recorded by now. */
  end(detail: RunDetail): void {
    this.#flush();
    if (detail.outcome === undefined || this.#options.steps) return;
    const { outcome, exitCode = 0, error } = detail;
    const result = { outcome, exitCode, ...(error ? { error } : {}) };
    this.#job.finish({ state: 'ran', result }, detail.durationMs ?? 0);
    if (detail.durationMs === undefined) delete this.#job.durationMs;
    this.#renderer.jobEnd(this.#job, { state: 'ran', result });
  }

  [Symbol.dispose](): void {
    this.#renderer[Symbol.dispose]();
  }

  #isWanted(entry: Exclude<LogEntry, { type: 'dropped' }>): boolean {
    const { steps } = this.#options;
    if (!steps) return true;
    if (entry.type === 'output') return steps.has(entry.step);
    return 'step' in entry.event && steps.has(entry.event.step);
  }

  #prefixer(stream: Stream, step: number): LinePrefixer {
    const key = `${stream} ${step}`;
    let prefixer = this.#prefixers.get(key);
    if (!prefixer) {
      prefixer = new LinePrefixer(() => `${new Date(this.#timeMs).toISOString()} `, { reset: false });
      this.#prefixers.set(key, prefixer);
    }
    return prefixer;
  }

  /** Last lines without an end. */
  #flush(): void {
    for (const [key, prefixer] of this.#prefixers) {
      void this.#terminal.raw(key.startsWith('stdout') ? 'stdout' : 'stderr', prefixer.end());
    }
  }
}
