/**
 * The outside, for tests of the network: a network namespace in which every address of IPv4 and IPv6 leads to servers on its
 * loopback device, with a resolver of its own. A host daemon that is started inside finds an internet there, metadata service
 * and private networks included, and no packet of it leaves the machine. Whatever reaches a server is on record, and the
 * loopback device counts packets: the proof that nothing got out.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type CtOutcome, runCt } from './run-ct.ts';

const FIXTURE = join(import.meta.dirname, '../fixtures/outside/main.ts');

/** A connection or datagram that reached the outside. */
export interface Arrival {
  readonly protocol: 'tcp' | 'udp';
  /** Where it was sent to. */
  readonly address: string;
  readonly port: number;
  readonly bytes: number;
  /** The first 4096 bytes. */
  readonly beginning: string;
}

export interface OutsideLog {
  readonly arrivals: readonly Arrival[];
  /** Names that the resolver of the host was asked for. */
  readonly questions: readonly string[];
  /** That passed the loopback device, in one direction. */
  readonly packets: number;
}

export interface OutsideOptions {
  /** For keys, certificates and the repository; private, and the caller's to remove. */
  readonly directory: string;
  /** What the resolver answers: name → addresses of both families. */
  readonly names: Readonly<Record<string, readonly string[]>>;
}

/** Why there can be no outside here, for `skip`; undefined if there can. */
export function noOutside(): string | undefined {
  if (process.getuid?.() !== 0) return 'an outside in a network namespace needs root';
  try {
    for (const [file, ...args] of [
      ['openssl', 'version'],
      ['ip', '-V'],
      ['git', '--version'],
    ]) {
      execFileSync(file ?? '', args, { stdio: 'ignore' });
    }
    execFileSync('unshare', ['--net', '--mount', 'true'], { stdio: 'ignore' });
    return undefined;
  } catch (error) {
    return `there can be no outside here: ${(error as Error).message}`;
  }
}

export class Outside implements AsyncDisposable {
  /** Of the authority that has signed every server's certificate. */
  readonly authorityPem: string;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, authorityPem: string) {
    this.#child = child;
    this.authorityPem = authorityPem;
  }

  static async open({ directory, names }: OutsideOptions): Promise<Outside> {
    makeCertificates(directory, Object.keys(names));
    makeRepository(directory);
    writeFileSync(join(directory, 'names.json'), JSON.stringify(names));
    const child = spawn(
      'unshare',
      ['--net', '--mount', process.execPath, '--disable-warning=ExperimentalWarning', FIXTURE, directory],
      { stdio: ['ignore', 'inherit', 'inherit', 'ipc'], env: { PATH: process.env['PATH'] } },
    );
    const outside = new Outside(child, readFileSync(join(directory, 'authority.pem'), 'utf8'));
    const ended = once(child, 'exit').then(([code]) => {
      throw new Error(`the outside ended with ${code} before it was ready`);
    });
    await Promise.race([once(child, 'message'), ended]);
    ended.catch(() => {});
    return outside;
  }

  /** `ct` in the namespaces of the outside; a daemon that it starts stays there. */
  ct(args: readonly string[], options: Parameters<typeof runCt>[1] = {}): Promise<CtOutcome> {
    return runCt(args, { ...options, through: this.enter(options.cwd ?? process.cwd()) });
  }

  /** A command line before another, which then runs inside. */
  enter(cwd: string): readonly string[] {
    const place = `/proc/${this.#child.pid}/ns`;
    return ['nsenter', `--net=${place}/net`, `--mount=${place}/mnt`, `--wd=${cwd}`, '--'];
  }

  /** Everything that has arrived so far. */
  async log(): Promise<OutsideLog> {
    const answer = once(this.#child, 'message');
    this.#child.send('log');
    return ((await answer) as [OutsideLog])[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.disconnect();
    await ended;
  }
}

/** One authority, and one certificate for all names. */
function makeCertificates(directory: string, names: readonly string[]): void {
  const openssl = (...args: readonly string[]): void =>
    void execFileSync('openssl', args, { cwd: directory, stdio: 'pipe' });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  openssl(
    'req',
    '-x509',
    ...key,
    '-keyout',
    'authority.key',
    '-out',
    'authority.pem',
    '-subj',
    '/CN=outside',
  );
  const alternatives = ['plain.example', ...names].map((name) => `DNS:${name}`).join(',');
  openssl(
    ...['req', '-x509', ...key, '-keyout', 'server.key', '-out', 'server.pem', '-subj', '/CN=server'],
    ...['-CA', 'authority.pem', '-CAkey', 'authority.key'],
    ...['-addext', `subjectAltName=${alternatives}`, '-addext', 'basicConstraints=critical,CA:FALSE'],
  );
}

/** A repository with one file, `/repository.git` of the HTTP servers. */
function makeRepository(directory: string): void {
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  writeFileSync(join(tree, 'file'), 'from outside\n');
  const git = (...args: readonly string[]): void =>
    void execFileSync('git', ['-c', 'user.name=ct', '-c', 'user.email=ct@example.com', ...args], {
      stdio: 'pipe',
      env: { PATH: process.env['PATH'], HOME: directory, GIT_CONFIG_NOSYSTEM: '1' },
    });
  git('init', '--quiet', tree);
  git('-C', tree, 'add', 'file');
  git('-C', tree, 'commit', '--quiet', '--message=one');
  git('clone', '--quiet', '--bare', tree, join(directory, 'repository.git'));
}
