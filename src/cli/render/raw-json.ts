/** `--progress=rawjson`: every event and every piece of output as one line of JSON on stdout. */
import { isUtf8 } from 'node:buffer';
import type { JobEnd } from '../../job/schedule.ts';
import type { RunEvent } from '../../protocol/run.ts';
import type { Sink, Stream } from '../output.ts';
import { type JobRecord, type RunRecord, reportOf } from './record.ts';
import type { Renderer } from './renderer.ts';

export class RawJsonRenderer implements Renderer {
  readonly #output: Sink;
  readonly #stamp: () => object;
  /** Beginnings of characters whose rest has not come yet, per job, stream and step. */
  readonly #carry = new Map<string, Buffer>();

  /** `stamp`: what stands in every line beside what happened. */
  constructor(output: Sink, stamp: () => object = () => ({})) {
    this.#output = output;
    this.#stamp = stamp;
  }

  /** Output that is not on record any more. */
  dropped(job: JobRecord, bytes: number): void {
    this.#print({ type: 'dropped', job: job.name, bytes });
  }

  progress(what: string): void {
    this.#print({ type: 'progress', message: what });
  }

  imageNotice(lines: readonly string[]): void {
    this.#print({ type: 'image-notice', message: lines.join('\n') });
  }

  jobStart(job: JobRecord): void {
    this.#print({
      type: 'job-start',
      job: job.name,
      image: job.image,
      steps: job.steps.map(({ name }) => name),
    });
  }

  event(job: JobRecord, event: RunEvent): void {
    if (event.type === 'done') return; // job-end says it
    if (event.type === 'step-end') this.#flushStep(job, event.step);
    this.#print({ job: job.name, ...event });
  }

  output(job: JobRecord, stream: Stream, step: number, bytes: Buffer): undefined | Promise<void> {
    const key = keyOf(job, stream, step);
    const carried = this.#carry.get(key);
    const all = carried ? Buffer.concat([carried, bytes]) : bytes;
    const cut = all.length - incompleteTail(all);
    const whole = all.subarray(0, cut);
    if (isUtf8(whole)) {
      if (cut < all.length) this.#carry.set(key, Buffer.from(all.subarray(cut)));
      else this.#carry.delete(key);
      return whole.length === 0 ? undefined : this.#chunk(job, stream, step, whole);
    }
    this.#carry.delete(key);
    return this.#chunk(job, stream, step, all);
  }

  notice(job: JobRecord, level: 'info' | 'warning', message: string): void {
    this.#print({ job: job.name, type: 'notice', level, message });
  }

  jobEnd(job: JobRecord, end: JobEnd): void {
    for (let step = 0; step < job.steps.length; step++) this.#flushStep(job, step);
    const { durationMs, artifacts } = job;
    const { state, ...rest } = end;
    const result = 'result' in rest ? rest.result : { outcome: state, ...rest };
    this.#print({ type: 'job-end', job: job.name, ...result, durationMs, artifacts });
  }

  end(run: RunRecord): void {
    this.#print({ type: 'end', report: reportOf(run) });
  }

  [Symbol.dispose](): void {}

  #flushStep(job: JobRecord, step: number): void {
    for (const stream of ['stdout', 'stderr'] as const) {
      const key = keyOf(job, stream, step);
      const rest = this.#carry.get(key);
      this.#carry.delete(key);
      if (rest) void this.#chunk(job, stream, step, rest);
    }
  }

  #chunk(job: JobRecord, stream: Stream, step: number, bytes: Buffer): undefined | Promise<void> {
    const data = isUtf8(bytes) ? { text: bytes.toString('utf8') } : { base64: bytes.toString('base64') };
    return this.#print({ type: 'output', job: job.name, stream, step, ...data });
  }

  #print(line: object): undefined | Promise<void> {
    return this.#output.write('stdout', `${JSON.stringify({ ...this.#stamp(), ...line })}\n`);
  }
}

function keyOf(job: JobRecord, stream: Stream, step: number): string {
  return `${stream} ${step} ${job.name}`;
}

/** How many bytes at the end begin a UTF-8 sequence (RFC 3629) that is not complete: 0 to 3. */
function incompleteTail(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] as number;
    if ((byte & 0xc0) === 0x80) continue; // a continuation: look further back for what it continues
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}
