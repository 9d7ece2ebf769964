/** A shell in the VM of a run, on our terminal: keys, size and signals go in, output comes back. */
import { constants } from 'node:os';
import { isatty } from 'node:tty';
import type { HostClient, ShellInput } from '../host/client.ts';
import { isTerminalName } from '../protocol/shell.ts';
import type { Output } from './output.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;
const DEFAULT_TERMINAL = 'xterm';

export interface ShellSession {
  readonly host: HostClient;
  readonly run: string;
  /** Empty for a shell. */
  readonly argv: readonly string[];
  readonly output: Output;
  /** A line of ours before it; only on a terminal. */
  readonly greeting?: string;
  /**
   * What a signal to us does, when the terminal is as it was: `die` of it, or `leave` it to those who handle it anyway.
   * Without a terminal the first one goes to the process in the VM instead, which may have something to put in order.
   */
  readonly onSignal: 'die' | 'leave';
}

/**
 * Returns the exit status of what ran. Throws what {@link HostClient.shell} throws. However it ends, the terminal is as it
 * was before.
 */
export async function shellSession(session: ShellSession): Promise<number> {
  const { host, run, argv } = session;
  const terminal = isatty(0) && isatty(1) ? terminalNow() : undefined;
  using output = await session.output.take();
  using raw = new RawTerminal(terminal !== undefined);
  using input = new Input();
  using _signals = handleSignals((name) => {
    if (!terminal && input.signal(constants.signals[name])) return false;
    raw[Symbol.dispose]();
    return session.onSignal === 'die' || name === 'SIGQUIT'; // which nobody else handles
  });
  return await host.shell(run, {
    request: { argv, ...(terminal ? { terminal } : {}) },
    onOutput: (stream, bytes) => output.write(stream, bytes),
    onOpen: (to) => {
      if (terminal && session.greeting !== undefined) {
        void output.write('stderr', Buffer.from(`${session.greeting}\n`));
      }
      raw.enter();
      input.connect(to, terminal !== undefined);
    },
  });
}

function terminalNow(): { readonly rows: number; readonly columns: number; readonly name: string } {
  const name = process.env['TERM'] ?? '';
  return { ...sizeNow(), name: isTerminalName(name) ? name : DEFAULT_TERMINAL };
}

/** A terminal may not know its size; 0 says so to programs, too. */
function sizeNow(): { readonly rows: number; readonly columns: number } {
  return { rows: process.stdout.rows ?? 0, columns: process.stdout.columns ?? 0 };
}

/** Keys as they are typed: Ctrl-C and its relatives are for the terminal in the VM. */
class RawTerminal implements Disposable {
  readonly #isTerminal: boolean;

  constructor(isTerminal: boolean) {
    this.#isTerminal = isTerminal;
  }

  enter(): void {
    if (this.#isTerminal) process.stdin.setRawMode(true);
  }

  [Symbol.dispose](): void {
    if (this.#isTerminal && process.stdin.isRaw) process.stdin.setRawMode(false);
  }
}

/** Our stdin, which is there for the next one when this one ends: it is paused and not closed. */
class Input implements Disposable {
  #to: ShellInput | undefined;
  #hasSignalled = false;

  connect(to: ShellInput, isTerminal: boolean): void {
    this.#to = to;
    process.stdin.on('data', this.#onData).on('end', this.#onEnd).on('error', this.#onEnd);
    process.stdin.resume(); // an earlier session has paused it
    if (!isTerminal) return;
    process.stdout.on('resize', this.#onResize);
    this.#onResize(); // it may have changed since the size was taken
  }

  /** False if there is no process to send it to, or it was sent one already. */
  signal(number: number): boolean {
    if (!this.#to || this.#hasSignalled) return false;
    this.#hasSignalled = true;
    this.#to.signal(number);
    return true;
  }

  [Symbol.dispose](): void {
    if (!this.#to) return;
    process.stdin.off('data', this.#onData).off('end', this.#onEnd).off('error', this.#onEnd);
    process.stdin.pause();
    process.stdout.off('resize', this.#onResize);
    this.#to = undefined;
  }

  readonly #onData = (bytes: Buffer): void => {
    const waiting = this.#to?.write(bytes);
    if (!waiting) return;
    process.stdin.pause();
    void waiting.then(() => this.#to && process.stdin.resume());
  };

  readonly #onEnd = (): void => this.#to?.end();

  readonly #onResize = (): void => {
    const { rows, columns } = sizeNow();
    this.#to?.resize(rows, columns);
  };
}

/** `handle` says whether to die of the signal. */
function handleSignals(handle: (name: NodeJS.Signals) => boolean): Disposable {
  const onSignal = (name: NodeJS.Signals): void => {
    if (!handle(name)) return;
    restore();
    process.kill(process.pid, name);
  };
  const restore = (): void => {
    for (const name of SIGNALS) process.off(name, onSignal);
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  return { [Symbol.dispose]: restore };
}
