/**
 * The part of a job's life that happens with a guest: stage, run, collect (docs/architecture.md). Runs in the link
 * process; what comes before (admit, claim) and after (destroy) is the daemon's.
 */
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError, EXIT_STATUS, errorReport, toCtError } from '../core/errors.ts';
import type { ExecRequest, ExecResult, GuestSession } from '../guest/session.ts';
import type { ImageManifest } from '../image/manifest.ts';
import type { CodePhase, CodeSettings } from '../protocol/code.ts';
import { SCRIPT_DIRECTORY, WORKSPACE_DIRECTORY } from '../protocol/guest-link.ts';
import type { GuestNetworkSettings } from '../protocol/network.ts';
import type { JobRequest, JobResult, PackageManager, StepOutcome, StepRequest } from '../protocol/run.ts';
import type { TreeExpectation } from '../protocol/verify.ts';
import type { ClientChannel } from './client-channel.ts';
import { guestVariables, installGuestSettings } from './guest-settings.ts';
import { hintFor } from './hints.ts';
import { Masker, type SecretScan } from './mask.ts';
import { exitCodeOf, resultOf } from './outcome.ts';
import { OutputMask } from './output-mask.ts';
import { PackageCheck } from './package-check.ts';
import { type Problem, unverified } from './packages.ts';
import { secretNames } from './planned-job.ts';
import { type SecretValues, withoutFinalNewline } from './secret-values.ts';
import type { Shells } from './shells.ts';
import { CheckedTree } from './tree-check.ts';

/** What of a failed step's output is searched for a hint. Guest-controlled. */
const HINT_TAIL_BYTES = 16_384;
/**
 * Of steps with a network in a run whose code is judged: what Python compiles there would be code of the fetched kind, which later
 * steps would not be let read.
 */
const FETCH_ENV = { PYTHONDONTWRITEBYTECODE: '1' };
/** As a shell reports it: 128 and signal 9. */
const KILLED = 137;
/** From the decision that a job is to end until it ends without having said so to its client. */
const ENDING_GRACE_MS = 2000;

export interface RunnerOptions {
  readonly run: string;
  readonly request: JobRequest;
  readonly session: GuestSession;
  readonly client: ClientChannel;
  readonly image: Pick<ImageManifest, 'name' | 'user' | 'env'>;
  /** Admitted once the job's secrets, if it has any, are masked; their end is the caller's. */
  readonly shells?: Shells;
  /** What clients in the guest are told of those of the host. */
  readonly settings?: GuestNetworkSettings | undefined;
  /** What the tree has to be. Before it is, the client is asked for no secret, and nothing runs. */
  readonly expected?: TreeExpectation;
  /** Absent: all code may run. `hasNetwork`: steps that do not say otherwise have one. */
  readonly code?: { readonly settings: CodeSettings; readonly hasNetwork: boolean } | undefined;
  /** Told what is wrong with packages. */
  readonly onPackages?: (manager: PackageManager, problem: Problem) => void;
  /** Nothing of the job gets into the VM before this resolves; what it throws ends the job. */
  readonly beforeAll?: () => Promise<void>;
  /** Called when a step begins, before anything of it runs. */
  readonly onStep?: (step: StepRequest) => void;
  /** Called when the first step runs: what would hold it up may begin. */
  readonly onRunning?: () => void;
}

/** Runs the job to its end, whatever that is; never rejects. */
export async function runJob(options: RunnerOptions): Promise<JobResult> {
  const { client, request } = options;
  const controller = new AbortController();
  void client.cancelled.then((reason) => controller.abort(reason));
  const timer = setTimeout(() => {
    controller.abort(
      new CtError('JOB_TIMEOUT', `the job ran longer than ${seconds(request.timeoutMs)}`, {
        hint: 'raise `timeout` of the job if it needs longer',
      }),
    );
  }, request.timeoutMs);
  // A client that does not read holds up even the report of the end: the job ends without it.
  const ended = Promise.withResolvers<never>();
  ended.promise.catch(() => {});
  let grace: NodeJS.Timeout | undefined;
  controller.signal.addEventListener('abort', () => {
    grace = setTimeout(() => ended.reject(controller.signal.reason), ENDING_GRACE_MS);
  });
  try {
    return client.masked(await Promise.race([new JobRun(options, controller.signal).run(), ended.promise]));
  } catch (error) {
    return client.masked(resultOf(toCtError(error)));
  } finally {
    clearTimeout(timer);
    clearTimeout(grace);
  }
}

class JobRun {
  readonly #options: RunnerOptions;
  readonly #signal: AbortSignal;
  readonly #env: Readonly<Record<string, string>>;
  #secrets: SecretValues | undefined;
  #masker: Masker | undefined;
  /** The step whose place shells are in: it runs, or it failed. */
  #current: StepRequest | undefined;
  /** The stage of the run; without judged code it does not count. */
  #phase: CodePhase = 'stage';
  readonly #packages = new PackageCheck((request) => this.#exec(request));
  #hasAdmittedShells = false;
  /** Looks for secrets in the artifacts. */
  #scan: SecretScan | undefined;

  constructor(options: RunnerOptions, signal: AbortSignal) {
    this.#options = options;
    this.#signal = signal;
    const { user, env } = options.image;
    this.#env = {
      ...env,
      ...(options.settings && guestVariables(options.settings)),
      HOME: user.home,
      USER: user.name,
      LOGNAME: user.name,
      CI: 'true',
      CT: 'true',
      CT_JOB: options.request.name,
      CT_RUN: options.run,
      CT_WORKSPACE: WORKSPACE_DIRECTORY,
      ...options.request.env,
    };
  }

  async run(): Promise<JobResult> {
    const { request } = this.#options;
    using cleanup = new DisposableStack();
    if (this.#options.beforeAll) await this.#unlessAborted(this.#options.beforeAll());
    const { code, session } = this.#options;
    if (code) await this.#unlessAborted(session.setCode(code.settings).catch(cannotJudge));
    if (request.sendsTree) await this.#stage();
    else if (this.#options.expected) {
      throw new CtError('VERIFY_EVIDENCE_MISSING', 'the working tree has to be verified, and none is sent');
    }
    await this.#receiveSecrets(cleanup);
    if (!code) this.#admitShells();
    await this.#installSettings();
    await this.#packages.begin(request.steps);
    let failed: { result: JobResult } | undefined;
    for (const [index, step] of request.steps.entries()) {
      const wanted = step.condition === 'always' || (step.condition === 'failure') === (failed !== undefined);
      if (!wanted) {
        await this.#stepEnd(index, step, 'skipped', 0);
        continue;
      }
      this.#current = step;
      const result = await this.#step(index, step);
      if (result && !failed) {
        failed = { result };
        if (request.shellOnFailure) await this.#offerShell(index, step);
      }
      this.#current = undefined;
    }
    if (request.artifacts.length > 0) await this.#collect();
    return failed?.result ?? { outcome: 'success', exitCode: 0 };
  }

  /** Asks for the values of all secrets, and waits for them; from then on they are masked. */
  async #receiveSecrets(cleanup: DisposableStack): Promise<void> {
    const { client, request } = this.#options;
    const names = secretNames(request);
    if (names.length === 0) return;
    await client.event({ type: 'secrets-wanted' });
    const secrets = cleanup.use(await this.#unlessAborted(client.secrets.expect(names)));
    const masker = new Masker(secrets);
    client.maskWith((emit) => new OutputMask(masker, emit));
    this.#secrets = secrets;
    this.#masker = masker;
    this.#scan = masker.scan();
  }

  /** What a shell writes while the tree is written would count as the tree, so with judged code the first one comes after that. */
  #admitShells(): void {
    if (this.#hasAdmittedShells) return;
    this.#hasAdmittedShells = true;
    this.#options.shells?.admit({
      exec: (request) =>
        this.#exec({
          ...request,
          env: { ...this.#current?.env, ...request.env },
          cwd: this.#current?.workingDirectory ?? '',
        }),
      mask: (emit) => this.#masker && new OutputMask(this.#masker, emit),
    });
  }

  /** From one phase to the next, every process of the job is killed; a step without a network has nothing of one with. */
  async #enterPhase(step: StepRequest): Promise<void> {
    const { code, session } = this.#options;
    if (!code) return;
    const phase = step.network === 'none' || !code.hasNetwork ? 'build' : 'fetch';
    if (phase !== this.#phase) await this.#unlessAborted(session.setPhase(phase));
    this.#phase = phase;
    this.#admitShells();
  }

  /** The client opens it as any other, from outside; this waits until it has. */
  async #offerShell(index: number, step: StepRequest): Promise<void> {
    const { client } = this.#options;
    await client.event({ type: 'shell-offer', step: index, name: step.name });
    await this.#unlessAborted(client.shellDone);
  }

  async #installSettings(): Promise<void> {
    const { settings, image } = this.#options;
    if (!settings) return;
    await installGuestSettings(settings, {
      home: image.user.home,
      exec: (request) => this.#exec(request),
    });
  }

  async #unlessAborted<T>(wait: Promise<T>): Promise<T> {
    const aborted = Promise.withResolvers<never>();
    const onAbort = (): void => aborted.reject(this.#signal.reason);
    if (this.#signal.aborted) onAbort();
    this.#signal.addEventListener('abort', onAbort, { once: true });
    try {
      return await Promise.race([wait, aborted.promise]);
    } finally {
      this.#signal.removeEventListener('abort', onAbort);
    }
  }

  async #stage(): Promise<void> {
    const startedAt = performance.now();
    let bytes = 0;
    const counted = async function* (tree: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
      for await (const chunk of tree) {
        bytes += chunk.length;
        yield chunk;
      }
    };
    const complaint = new BoundedTail(2048);
    const { expected, client } = this.#options;
    const checked = expected && new CheckedTree(client.tree, expected);
    const result = await this.#exec({
      builtin: 'tree-in',
      argv: [WORKSPACE_DIRECTORY],
      stdin: counted(checked ?? client.tree),
      onOutput: (_, chunk) => complaint.push(chunk),
    });
    if (result.kind !== 'exited' || result.code !== 0) {
      throw new CtError(
        'WORKSPACE_STAGE_FAILED',
        `the working tree could not be written into the VM: ${complaint.text()}`,
        {
          hint: 'if the volume is full, give the job more `resources.disk`',
        },
      );
    }
    if (checked?.holds === false) {
      throw new CtError(
        'WORKSPACE_STAGE_FAILED',
        'the VM took the working tree before all of it was verified',
      );
    }
    await client.event({ type: 'staged', durationMs: performance.now() - startedAt, bytes });
  }

  /** Undefined if the step succeeded, else what the job's result is because of it. */
  async #step(index: number, step: StepRequest): Promise<JobResult | undefined> {
    const { client } = this.#options;
    const startedAt = performance.now();
    await client.event({ type: 'step-start', step: index, name: step.name });
    this.#options.onStep?.(step);
    await this.#enterPhase(step);
    const problem = await this.#packages.problemOf(step);
    if (problem) return await this.#unverified(index, step, problem, performance.now() - startedAt);
    const tail = new BoundedTail(HINT_TAIL_BYTES);
    client.onOutput = (bytes) => tail.push(bytes);
    const timeout = new AbortController();
    const timer =
      step.timeoutMs === undefined
        ? undefined
        : setTimeout(
            () =>
              timeout.abort(
                new CtError(
                  'STEP_TIMEOUT',
                  `step “${step.name}” ran longer than ${seconds(step.timeoutMs ?? 0)}`,
                  { hint: 'raise the `timeout` of the step if it needs longer' },
                ),
              ),
            step.timeoutMs,
          );
    try {
      const script =
        step.script === undefined ? undefined : { name: `step-${index + 1}`, content: step.script };
      const result = await this.#exec({
        argv: step.argv.map((arg) =>
          script ? arg.replaceAll('{0}', `${SCRIPT_DIRECTORY}/${script.name}`) : arg,
        ),
        ...(script ? { script } : {}),
        env: this.#phase === 'fetch' ? { ...FETCH_ENV, ...this.#env, ...step.env } : step.env,
        ...this.#secretsOf(step),
        cwd: step.workingDirectory,
        ...(step.stdin ? { stdin: client.stdin } : {}),
        onOutput: (stream, bytes) => client.output(stream, index, bytes),
        onStarted: (send) => {
          client.onSignal = send;
          this.#options.onRunning?.();
        },
        signal: AbortSignal.any([this.#signal, timeout.signal]),
      });
      const exitCode = exitCodeOf(result);
      await client.endOutput();
      const durationMs = performance.now() - startedAt;
      if (exitCode === 0) {
        await this.#stepEnd(index, step, 'success', durationMs, { exitCode });
        return undefined;
      }
      const mismatch = this.#packages.mismatch(step, tail.text());
      if (mismatch) return await this.#unverified(index, step, mismatch, durationMs, exitCode);
      const oomKilled = result.kind !== 'failed' && result.oomKilled;
      const { network } = this.#options.request;
      // Then it is said elsewhere what was killed, and why.
      const mayBeRefused =
        this.#options.code?.settings.mode === 'terminate' && exitCode === KILLED && !oomKilled;
      const hint = mayBeRefused
        ? undefined
        : hintFor({
            output: tail.bytes(),
            exitCode,
            oomKilled,
            image: this.#options.image.name,
            memoryMib: this.#options.request.memoryMib,
            ...(network === undefined || step.network === 'none' ? {} : { network }),
            ...(result.kind === 'failed'
              ? { startError: { errno: result.errno, program: step.argv[0] ?? '' } }
              : {}),
          });
      await this.#stepEnd(index, step, 'failure', durationMs, {
        exitCode,
        ...(result.kind === 'signalled' ? { signal: result.signal } : {}),
        ...(hint === undefined ? {} : { hint }),
      });
      const why =
        result.kind === 'failed'
          ? `could not be started: ${result.message}`
          : `failed with exit code ${exitCode}`;
      const error = errorReport(new CtError('JOB_FAILED', `step “${step.name}” ${why}`, { hint }));
      return { outcome: 'failure', exitCode, error };
    } catch (error) {
      const failure = toCtError(error);
      await client.endOutput();
      const outcome = failure.kind === 'timeout' || failure.kind === 'cancelled' ? failure.kind : 'failure';
      await this.#stepEnd(index, step, outcome, performance.now() - startedAt);
      // A step that took too long has failed, and only it: steps that run after failures still do.
      if (failure.code === 'STEP_TIMEOUT') {
        return { outcome: 'timeout', exitCode: failure.exitStatus, error: errorReport(failure) };
      }
      throw failure;
    } finally {
      clearTimeout(timer);
    }
  }

  /** The step has failed because of its packages. */
  async #unverified(
    index: number,
    step: StepRequest,
    problem: Problem,
    durationMs: number,
    exitCode: number = EXIT_STATUS.job,
  ): Promise<JobResult> {
    const error = errorReport(unverified(step, problem));
    if (step.packages) this.#options.onPackages?.(step.packages.manager, problem);
    const { hint, message } = error;
    await this.#options.client.event({ type: 'notice', level: 'warning', message });
    await this.#stepEnd(index, step, 'failure', durationMs, {
      exitCode,
      ...(hint === undefined ? {} : { hint }),
    });
    return { outcome: 'failure', exitCode, error };
  }

  #secretsOf(step: StepRequest): Pick<ExecRequest, 'secretEnv' | 'secretFiles'> {
    const secretEnv = new Map<string, Buffer>();
    const secretFiles = new Map<string, Buffer>();
    for (const { name, env } of step.secrets ?? []) {
      const value = this.#secrets?.get(name);
      if (value === undefined) throw new CtError('INTERNAL', `the secret \`${name}\` was not received`);
      if (env === undefined) secretFiles.set(name, value);
      else secretEnv.set(env, withoutFinalNewline(value));
    }
    return { secretEnv, secretFiles };
  }

  async #stepEnd(
    index: number,
    step: StepRequest,
    outcome: StepOutcome,
    durationMs: number,
    detail: { exitCode?: number; signal?: number; hint?: string } = {},
  ): Promise<void> {
    await this.#options.client.event({
      type: 'step-end',
      step: index,
      name: step.name,
      outcome,
      durationMs,
      ...detail,
    });
  }

  async #collect(): Promise<void> {
    const { client, request } = this.#options;
    const startedAt = performance.now();
    let bytes = 0;
    const complaint = new BoundedTail(2048);
    const result = await this.#exec({
      builtin: 'tree-out',
      argv: [WORKSPACE_DIRECTORY, ...request.artifacts],
      onOutput: (stream, chunk) => {
        if (stream === 'stderr') return complaint.push(chunk);
        bytes += chunk.length;
        this.#scan?.push(chunk);
        return client.artifacts(chunk);
      },
    });
    if (result.kind !== 'exited' || result.code !== 0) {
      throw new CtError(
        'ARTIFACT_WRITE_FAILED',
        `the artifacts could not be read in the VM: ${complaint.text()}`,
      );
    }
    await client.endArtifacts();
    for (const line of complaint.text().split('\n')) {
      if (line.trim() !== '') await client.event({ type: 'notice', level: 'warning', message: line.trim() });
    }
    for (const name of this.#scan?.found ?? []) {
      const message = `the artifacts contain the value of the secret \`${name}\`; artifacts are not masked`;
      await client.event({ type: 'notice', level: 'warning', message });
    }
    await client.event({ type: 'collected', durationMs: performance.now() - startedAt, bytes });
  }

  #exec(request: Pick<ExecRequest, 'argv' | 'onOutput'> & Partial<ExecRequest>): Promise<ExecResult> {
    const { user } = this.#options.image;
    const cwd = request.cwd;
    return this.#options.session.exec({
      uid: user.uid,
      gid: user.gid,
      signal: this.#signal,
      ...request,
      env: { ...this.#env, ...request.env },
      cwd:
        cwd === undefined || cwd === '' || cwd === '.'
          ? WORKSPACE_DIRECTORY
          : `${WORKSPACE_DIRECTORY}/${cwd}`,
    });
  }
}

function cannotJudge(error: unknown): never {
  if (!(error instanceof CtError) || error.code !== 'GUEST_REFUSED') throw error;
  throw new CtError(
    'GUEST_REFUSED',
    `only some code may run, and the VM cannot tell which: ${error.message}`,
    {
      hint: 'an image that was built by an earlier version of ct cannot: build it again',
      cause: error,
    },
  );
}

function seconds(ms: number): string {
  return `${Math.round(ms / 100) / 10} s`;
}
