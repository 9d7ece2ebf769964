/** Our own lines and a job's raw bytes on one terminal, with a status line at the bottom while nothing is printed. */
import type { Sink, Stream } from '../output.ts';
import { oneLine, type Style, styleFor } from './format.ts';

const NEWLINE = 0x0a;
/** The status line appears when nothing has been printed for this long. */
const QUIET_MS = 400;
const FRAME_MS = 120;
const FRAMES = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const ERASE_LINE = '\r\x1b[K';

/**
 * Our lines go to stderr, so that stdout holds what the job wrote to it and nothing else. A line of ours never starts
 * in the middle of a job's line; the status line is only drawn where a line would start.
 */
export class Terminal implements Disposable {
  readonly style: Style;
  readonly live: boolean;
  readonly #output: Sink;
  #atLineStart = true;
  #statusDrawn = false;
  #lastWriteAt = performance.now();
  #timer: NodeJS.Timeout | undefined;
  #frame = 0;

  constructor(output: Sink, options: { readonly live: boolean }) {
    this.#output = output;
    this.live = options.live;
    this.style = styleFor(output.isTty.stderr);
  }

  /** One line, or several, of our own. */
  line(text: string): void {
    this.#eraseStatus();
    const start = this.#atLineStart ? '' : '\n';
    this.#atLineStart = true;
    this.#lastWriteAt = performance.now();
    this.#output.write('stderr', `${start}${text.endsWith('\n') ? text : `${text}\n`}`);
  }

  /** Bytes of the job, untouched. */
  raw(stream: Stream, bytes: Buffer): undefined | Promise<void> {
    if (bytes.length === 0) return undefined;
    this.#eraseStatus();
    // What goes into a file does not move the cursor of the terminal on the other stream.
    const other = stream === 'stdout' ? 'stderr' : 'stdout';
    if (this.#output.isTty[stream] || !this.#output.isTty[other]) {
      this.#atLineStart = bytes.at(-1) === NEWLINE;
      this.#lastWriteAt = performance.now();
    }
    return this.#output.write(stream, bytes);
  }

  /** Keeps showing what `status` returns; undefined shows nothing. Only on a live terminal. */
  showStatus(status: () => string | undefined): void {
    if (!this.live) return;
    this.#timer ??= setInterval(() => {
      const text = status();
      if (this.#output.isTaken || !this.#atLineStart || performance.now() - this.#lastWriteAt < QUIET_MS)
        return;
      if (text === undefined) this.#eraseStatus();
      else this.#drawStatus(text);
    }, FRAME_MS);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#eraseStatus();
  }

  #drawStatus(text: string): void {
    this.#frame = (this.#frame + 1) % FRAMES.length;
    const columns = process.stderr.columns || 80;
    const line = `${FRAMES[this.#frame]} ${oneLine(text)}`.slice(0, Math.max(0, columns - 1));
    this.#output.write('stderr', `${ERASE_LINE}${this.style.dim(line)}`);
    this.#statusDrawn = true;
  }

  #eraseStatus(): void {
    if (!this.#statusDrawn) return;
    this.#statusDrawn = false;
    this.#output.write('stderr', ERASE_LINE);
  }
}
