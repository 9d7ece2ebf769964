/** A guest in which code is judged, as the tests of it use one. */
import assert from 'node:assert/strict';
import type { DeniedEvent } from '../../src/audit/records.ts';
import type { ExecRequest } from '../../src/guest/session.ts';
import type { CodePhase, CodeSettings, Interpreter } from '../../src/protocol/code.ts';
import { AuditHost } from './audit-host.ts';
import type { TestGuest, TestVmm } from './machines.ts';

/** Of the VM that a test makes. */
export const CPUS = 2;

const SHELL: Omit<Interpreter, 'path'> = {
  endings: [],
  options: ['-c', '-s'],
  inlineForbidden: false,
  everyArgument: true,
};
export const INTERPRETERS: Interpreter[] = [
  { ...SHELL, path: '/bin/sh' },
  { ...SHELL, path: '/bin/bash' },
  { ...SHELL, path: '/usr/bin/python3', endings: ['.py', '.pyc'], options: ['-c'], everyArgument: false },
  { ...SHELL, path: '/usr/bin/perl', endings: ['.pl', '.pm'], options: ['-e', '-E'], everyArgument: false },
  { ...SHELL, path: '/opt/not-there' },
];
export const CODE_SETTINGS: CodeSettings = {
  mode: 'enforce',
  trust: { source: true, built: true },
  digests: [],
  interpreters: INTERPRETERS,
};

export class Job implements AsyncDisposable {
  readonly guest: TestGuest;
  readonly host: AuditHost;

  readonly #hasPhases: boolean;

  private constructor(guest: TestGuest, host: AuditHost, hasPhases: boolean) {
    this.guest = guest;
    this.host = host;
    this.#hasPhases = hasPhases;
  }

  /** Settings undefined: nothing is judged, and phases are none. */
  static async start(vmm: TestVmm, settings?: CodeSettings): Promise<Job> {
    const guest = await vmm.clone({ audit: 'unread' });
    const job = new Job(guest, await AuditHost.open(guest, { cpus: CPUS }), settings !== undefined);
    if (settings) await guest.session.setCode(settings);
    return job;
  }

  async write(path: string, content: string): Promise<void> {
    const { err, result } = await this.guest.sh('mkdir -p "$(dirname "$0")" && cat > "$0"', {
      argv: ['sh', '-c', 'mkdir -p "$(dirname "$0")" && cat > "$0"', path],
      stdin: (async function* () {
        yield Buffer.from(content);
      })(),
    });
    assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false }, err);
  }

  /** What was told of it comes, too. */
  async run(
    command: string,
    options: Partial<ExecRequest> = {},
  ): Promise<{ out: string; err: string; signal: number; told: DeniedEvent[] }> {
    const from = this.host.of('denied').length;
    const { out, err, result } = await this.guest.sh(command, options);
    await this.host.caughtUp();
    const signal = result.kind === 'signalled' ? result.signal : 0;
    return { out, err, signal, told: this.host.of('denied').slice(from) };
  }

  async good(command: string, options: Partial<ExecRequest> = {}): Promise<string> {
    const { out, err, result } = await this.guest.sh(command, options);
    assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false }, err);
    return out;
  }

  async phase(phase: CodePhase): Promise<void> {
    if (this.#hasPhases) await this.guest.session.setPhase(phase);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.guest[Symbol.asyncDispose]();
  }
}
