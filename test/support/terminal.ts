/**
 * Programs on a terminal of their own: the guest agent, as an ordinary program (guest-agent/test/serve.c), makes
 * pseudo-terminals for whoever asks.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { stripVTControlCharacters } from 'node:util';
import { installRoot } from '../../src/core/install.ts';
import { type ExecResult, GuestSession, type TerminalSize } from '../../src/guest/session.ts';

const BUILD = join(installRoot, 'build', 'guest-agent');
const OPEN_TIMEOUT_MS = 10_000;
/** Emulated VMs on a busy machine. A test that waits longer has failed. */
const SAID_TIMEOUT_MS = 40_000;

export class Terminals implements AsyncDisposable {
  readonly #session: GuestSession;
  readonly #ended: Promise<unknown>;
  readonly #directory: string;

  private constructor(session: GuestSession, ended: Promise<unknown>, directory: string) {
    this.#session = session;
    this.#ended = ended;
    this.#directory = directory;
  }

  static async open(): Promise<Terminals> {
    execFileSync('make', ['-s', '-C', join(installRoot, 'guest-agent'), `OUT=${BUILD}`, 'serve']);
    const directory = mkdtempSync(join(tmpdir(), 'ct-terminals-'));
    const child = spawn(join(BUILD, 'test', 'serve'), [directory], {
      stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
    });
    const ended = once(child, 'exit');
    const { session } = await GuestSession.open(
      child.stdio[3] as Socket,
      { hostname: 'terminals', volumeCipher: 'none' },
      OPEN_TIMEOUT_MS,
    );
    return new Terminals(session, ended, directory);
  }

  /** Starts a program on a terminal. */
  run(
    argv: readonly string[],
    options: {
      readonly cwd: string;
      readonly env: Readonly<Record<string, string>>;
      readonly size?: TerminalSize;
    },
  ): TerminalProgram {
    return new TerminalProgram(this.#session, argv, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#session.close();
    await this.#ended;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

export class TerminalProgram {
  readonly end: Promise<ExecResult>;
  readonly #keys = new PassThrough();
  readonly #hangUp = new AbortController();
  readonly #shown: Buffer[] = [];
  /** Up to here, {@link said} has found what it looked for. */
  #seen = 0;
  #signal: (signal: number) => void = () => {};
  #resize: (size: TerminalSize) => void = () => {};
  #hasEnded = false;

  constructor(
    session: GuestSession,
    argv: readonly string[],
    options: {
      readonly cwd: string;
      readonly env: Readonly<Record<string, string>>;
      readonly size?: TerminalSize;
    },
  ) {
    this.end = session.exec({
      argv,
      env: {
        PATH: process.env['PATH'] ?? '/usr/bin:/bin',
        HOME: process.env['HOME'] ?? '/',
        TERM: 'xterm-256color',
        ...options.env,
      },
      cwd: options.cwd,
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
      terminal: options.size ?? { rows: 24, columns: 80 },
      stdin: this.#keys,
      onOutput: (_, bytes) => void this.#shown.push(Buffer.from(bytes)),
      onStarted: (sendSignal, resize) => {
        this.#signal = sendSignal;
        this.#resize = resize;
      },
      signal: this.#hangUp.signal,
    });
    this.end
      .catch(() => {})
      .finally(() => {
        this.#hasEnded = true;
      });
  }

  /** All that was on the screen, without colours and the like, and with lines ended as in a file. */
  get shown(): string {
    return stripVTControlCharacters(Buffer.concat(this.#shown).toString('utf8')).replaceAll('\r', '');
  }

  type(keys: string): void {
    this.#keys.write(keys);
  }

  resize(rows: number, columns: number): void {
    this.#resize({ rows, columns });
  }

  signal(number: number): void {
    this.#signal(number);
  }

  /** Closes the window. */
  hangUp(): void {
    this.#hangUp.abort(new Error('hung up'));
  }

  /** What matched, once something new on the screen does. */
  async said(pattern: RegExp): Promise<RegExpExecArray> {
    for (const startedAt = performance.now(); ; await sleep(20)) {
      const found = pattern.exec(this.shown.slice(this.#seen));
      if (found) {
        this.#seen += found.index + found[0].length;
        return found;
      }
      const inTime = performance.now() - startedAt < SAID_TIMEOUT_MS;
      assert.ok(inTime && !this.#hasEnded, `never said ${pattern}, but:\n${this.shown}`);
    }
  }

  /** The exit code; a shell's for a signal. */
  async exitCode(): Promise<number> {
    const result = await this.end;
    if (result.kind === 'failed') return assert.fail(result.message);
    return result.kind === 'exited' ? result.code : 128 + result.signal;
  }
}
