/** `ct run`: plans, makes sure the images are there, runs the jobs through the host daemon, and renders what happens. */
import { fstatSync, statSync } from 'node:fs';
import { isatty } from 'node:tty';
import { printable } from '../../core/bounded-tail.ts';
import { CtError, messageOf } from '../../core/errors.ts';
import { ctHomePath } from '../../core/paths.ts';
import type { HostClient } from '../../host/client.ts';
import type { Plan, PlannedJob } from '../../job/plan.ts';
import type { JobEnd } from '../../job/schedule.ts';
import type { JobOrigin } from '../../protocol/network.ts';
import type { JobResult } from '../../protocol/run.ts';
import type { ArtifactsTarget } from '../artifacts.ts';
import { cancelOnSignals } from '../cancellation.ts';
import type { ParsedOptions } from '../command.ts';
import type { Output } from '../output.ts';
import { exitStatusOf, JobRecord, type RunRecord, reportOf } from '../render/record.ts';
import type { Renderer } from '../render/renderer.ts';
import { type RunOptions, readRunOptions } from '../run-options.ts';
import type { ResolvedSecrets } from '../secrets.ts';

/** Names of left-out paths in the note after a failure. */
const IGNORED_SHOWN = 3;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const options = readRunOptions(parsed, {
    cwd: process.cwd(),
    env: process.env,
    stderrIsTty: output.isTty.stderr,
    isInteractive: isatty(0) && output.isTty.stdout,
  });
  requireDirectory(options.directory);
  const { plan, root } = await makePlan(options);
  if (options.action !== 'run') {
    const { describePlan } = await import('../render/plan.ts');
    output.write('stdout', describePlan(plan, options));
    return 0;
  }
  // Before signals are handled here: Ctrl-C also ends a command that asks for a passphrase.
  using secrets = await findSecrets(plan, options);
  try {
    return await new Run(options, plan, root, output, secrets).execute();
  } finally {
    // However the run has ended: what was made for it ends with it.
    for (const failure of (await secrets?.revoke()) ?? [])
      output.write('stderr', `ct: warning: ${failure}\n`);
  }
}

async function makePlan(options: RunOptions): Promise<{ plan: Plan; root: string }> {
  const { planCommand, planJobs } = await import('../../job/plan.ts');
  if (options.command) {
    const { names, files } = options.secrets;
    const plan = planCommand({
      ...options.overrides,
      argv: options.command,
      stdin: stdinIsGiven(),
      secrets: [...new Set([...names, ...Object.keys(files)])],
    });
    return { plan, root: options.directory };
  }
  const { loadJobs } = await import('../../job/load.ts');
  const loaded = loadJobs(options.directory);
  return { plan: planJobs(loaded, { ...options.overrides, targets: options.targets }), root: loaded.root };
}

/** Undefined if no job names any and none is given. */
async function findSecrets(plan: Plan, options: RunOptions): Promise<ResolvedSecrets | undefined> {
  const { names, files } = options.secrets;
  const isGiven = names.length > 0 || Object.keys(files).length > 0;
  if (!isGiven && !plan.jobs.some(({ steps }) => steps.some(({ secrets = [] }) => secrets.length > 0))) {
    return undefined;
  }
  const { resolveSecrets } = await import('../secrets.ts');
  return await resolveSecrets(plan, options.secrets, process.env);
}

class Run {
  readonly #options: RunOptions;
  readonly #plan: Plan;
  readonly #root: string;
  readonly #output: Output;
  readonly #secrets: ResolvedSecrets | undefined;
  readonly #records: ReadonlyMap<string, JobRecord>;
  readonly #startedAt = performance.now();

  constructor(
    options: RunOptions,
    plan: Plan,
    root: string,
    output: Output,
    secrets: ResolvedSecrets | undefined,
  ) {
    this.#options = options;
    this.#plan = plan;
    this.#root = root;
    this.#output = output;
    this.#secrets = secrets;
    this.#records = new Map(plan.jobs.map((job) => [job.name, new JobRecord(job, this.#startedAt)]));
  }

  async execute(): Promise<number> {
    using cancellation = cancelOnSignals(this.#output);
    using renderer = await createRenderer(this.#options, this.#plan, this.#output);
    const { signal } = cancellation;
    const ctHome = ctHomePath();
    const [{ connectHost }, { checkCapacity }, { runPlan }, { findOrigin }, { checkPresets, policyNotice }] =
      await Promise.all([
        import('../../host/client.ts'),
        import('../../job/plan.ts'),
        import('../../job/schedule.ts'),
        import('../origin.ts'),
        import('../before-images.ts'),
      ]);
    // git answers while the daemon is reached.
    const originFound = findOrigin(this.#root);
    const host = await connectHost({ ctHome, signal });
    const capacity = host.greeting;
    checkCapacity(this.#plan, capacity);
    const notice = await policyNotice(host, process.env);
    if (notice !== undefined) this.#output.write('stderr', `warning: ${notice}\n`);
    await checkPresets(this.#plan.jobs, host, originFound);
    const [images, origin] = await Promise.all([this.#resolveImages(ctHome, renderer, signal), originFound]);

    const ends = await runPlan(this.#plan, {
      capacity,
      signal,
      runOne: (job, jobSignal) => this.#runJob(job, { host, renderer, signal: jobSignal, images, origin }),
      onEnd: (job, end) => this.#finish(job, end, renderer),
    });
    return this.#report([...ends.values()], renderer);
  }

  /** Digest per image name; builds what is missing or stale. */
  async #resolveImages(
    ctHome: string,
    renderer: Renderer,
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, string>> {
    const { ensureImage } = await import('../images.ts');
    const images = new Map<string, string>();
    for (const { image } of this.#plan.jobs) {
      if (images.has(image)) continue;
      const onProgress = (what: string, milestone: boolean): void => renderer.progress(what, milestone);
      const onNotice = (lines: readonly string[]): void => renderer.imageNotice(lines);
      const { locked } = this.#options;
      const directory = this.#root;
      images.set(
        image,
        await ensureImage(image, { ctHome, directory, signal, onProgress, onNotice, locked }),
      );
    }
    return images;
  }

  async #runJob(
    job: PlannedJob,
    context: {
      readonly host: HostClient;
      readonly renderer: Renderer;
      readonly signal: AbortSignal;
      readonly images: ReadonlyMap<string, string>;
      readonly origin: JobOrigin;
    },
  ): Promise<JobResult> {
    const { host, renderer, signal, images, origin } = context;
    const record = this.#record(job);
    const image = images.get(job.image);
    if (image === undefined) throw new CtError('INTERNAL', `the image ${job.image} was not resolved`);
    const [{ toJobRequest }, { packTree }, artifacts] = await Promise.all([
      import('../../job/plan.ts'),
      import('../../job/tree.ts'),
      import('../artifacts.ts'),
    ]);
    const target: ArtifactsTarget = {
      root: this.#root,
      chosen: this.#options.artifacts,
      jobDirectory: job.directory,
    };
    if (job.artifacts.length > 0) await artifacts.clearArtifacts(target);

    record.startedAt = performance.now();
    renderer.jobStart(record);
    const tree = packTree({ root: this.#root, respectIgnore: this.#options.respectIgnore, signal });
    using secrets = this.#secrets?.for(job);
    const { shellOnFailure } = this.#options;
    const request = {
      ...toJobRequest(job, { image, sendsTree: true, origin }),
      ...(shellOnFailure ? { shellOnFailure } : {}),
    };
    const result = await host.runJob(request, {
      tree,
      evidence: async (demands) => {
        const { collectEvidence } = await import('../evidence.ts');
        return await collectEvidence(this.#root, demands);
      },
      ...(job.steps.some(({ stdin }) => stdin) ? { stdin: process.stdin } : {}),
      ...(secrets ? { secrets } : {}),
      signal,
      onEvent: (event) => {
        record.take(event, performance.now());
        renderer.event(record, event);
      },
      onOutput: (stream, step, bytes) => renderer.output(record, stream, step, bytes),
      ...(shellOnFailure ? { onShellOffer: (run) => this.#shell(host, run, record, renderer) } : {}),
      onArtifacts: async (stream) => {
        const { warnings, ...received } = await artifacts.receiveArtifacts(target, stream, signal);
        record.artifacts = received;
        for (const warning of warnings) renderer.notice(record, 'warning', warning);
      },
    });
    const { warnings, ignored, ignoredCount } = tree.summary;
    for (const warning of warnings) renderer.notice(record, 'warning', warning);
    if (result.outcome === 'failure' && ignoredCount > 0) {
      renderer.notice(record, 'info', leftOut(ignored, ignoredCount));
    }
    return result;
  }

  /** A shell that cannot be opened is no reason not to go on. Those of several jobs come one after another. */
  async #shell(host: HostClient, run: string, job: JobRecord, renderer: Renderer): Promise<void> {
    const { shellSession } = await import('../shell-session.ts');
    const step = job.steps.find(({ state }) => state === 'failure' || state === 'timeout')?.name ?? '';
    const greeting = [
      `ct: step “${printable(step)}” of ${printable(job.name)} failed; this is a shell in its VM.`,
      'ct: leave it with exit or Ctrl-D: then the job goes on and ends as failed. Its timeout still counts.',
    ].join('\n');
    try {
      await shellSession({ host, run, argv: [], output: this.#output, greeting, onSignal: 'leave' });
    } catch (error) {
      renderer.notice(job, 'warning', `the shell ended: ${messageOf(error)}`);
    }
  }

  #finish(job: PlannedJob, end: JobEnd, renderer: Renderer): void {
    const record = this.#record(job);
    record.finish(end, performance.now());
    renderer.jobEnd(record, end);
  }

  #report(ends: readonly JobEnd[], renderer: Renderer): number {
    const run: RunRecord = {
      jobs: [...this.#records.values()],
      durationMs: performance.now() - this.#startedAt,
      exitStatus: exitStatusOf(ends, this.#options.command ? 'command' : 'jobs'),
    };
    renderer.end(run);
    if (this.#options.json) this.#output.write('stdout', `${JSON.stringify(reportOf(run), undefined, 2)}\n`);
    return run.exitStatus;
  }

  #record(job: PlannedJob): JobRecord {
    const record = this.#records.get(job.name);
    if (!record) throw new CtError('INTERNAL', `the job ${job.name} is not in the plan`);
    return record;
  }
}

async function createRenderer(options: RunOptions, plan: Plan, output: Output): Promise<Renderer> {
  if (options.progress === 'rawjson') {
    const { RawJsonRenderer } = await import('../render/raw-json.ts');
    return new RawJsonRenderer(output);
  }
  const { Terminal } = await import('../render/terminal.ts');
  const terminal = new Terminal(output, { live: options.progress === 'tty' });
  if (options.command && !options.json) {
    const { CommandRenderer } = await import('../render/command.ts');
    return new CommandRenderer(terminal);
  }
  const { TextRenderer } = await import('../render/text.ts');
  return new TextRenderer(terminal, {
    jobNames: plan.jobs.map(({ name }) => name),
    stdoutTo: options.json ? 'stderr' : 'stdout',
  });
}

function leftOut(ignored: readonly string[], count: number): string {
  const shown = ignored.slice(0, IGNORED_SHOWN).join(', ');
  const more = count > IGNORED_SHOWN ? ` and ${count - IGNORED_SHOWN} more` : '';
  return `what git ignores was not sent to the VM: ${shown}${more}; --no-ignore sends it too`;
}

/** A pipe, file or socket; a terminal or /dev/null is nobody's input. */
function stdinIsGiven(): boolean {
  try {
    const stats = fstatSync(0);
    return stats.isFIFO() || stats.isFile() || stats.isSocket();
  } catch {
    return false; // closed
  }
}

function requireDirectory(path: string): void {
  try {
    if (statSync(path).isDirectory()) return;
  } catch (error) {
    throw new CtError('WORKSPACE_UNREADABLE', `${path} cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
  throw new CtError('WORKSPACE_UNREADABLE', `${path} is not a directory`);
}
