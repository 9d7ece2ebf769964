/** Jobs whose code is judged, on a real host daemon, with a registry of packages that they can reach. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Alert } from '../../src/audit/alert.ts';
import { findHost } from '../../src/host/client.ts';
import { borrowImages } from './borrowed-home.ts';
import { stopHost } from './host.ts';
import { testImage } from './images.ts';
import { type PackageRegistry, packageRegistry } from './package-registry.ts';
import { type CtOutcome, runCt } from './run-ct.ts';
import { scratchDirectory } from './scratch.ts';

const REGISTRY_NAME = 'registry.example';

export interface CodeStep {
  readonly name?: string;
  readonly run: string;
  readonly network?: 'none';
  readonly packages?: 'npm';
}

export interface CodeJob {
  readonly steps: readonly CodeStep[];
  /** Absent: as policy says, which is `off`. */
  readonly exec?: 'audit' | 'enforce' | 'terminate';
  readonly image?: string;
  readonly verify?: object;
  /** Of the working tree. */
  readonly files?: Readonly<Record<string, string>>;
}

export interface CodeRun {
  readonly outcome: CtOutcome;
  /** The job in the document of `ct run --json`. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look at some of its fields
  readonly job: any;
  /** Those about code. */
  readonly alerts: readonly Alert[];
  readonly home: string;
}

export class CodeHost implements AsyncDisposable {
  readonly home: string;
  readonly registry: PackageRegistry;
  /** Of the registry, as jobs reach it. */
  readonly origin: string;
  readonly #directory: string;
  readonly #cleanup: AsyncDisposableStack;
  #jobs = 0;

  private constructor(
    directory: string,
    home: string,
    registry: PackageRegistry,
    cleanup: AsyncDisposableStack,
  ) {
    this.#directory = directory;
    this.home = home;
    this.registry = registry;
    this.origin = `http://${REGISTRY_NAME}:${registry.port}`;
    this.#cleanup = cleanup;
  }

  /** `images`: what jobs run in, besides debian-12. */
  static async open(images: readonly string[] = []): Promise<CodeHost> {
    await using cleanup = new AsyncDisposableStack();
    const { path } = cleanup.use(scratchDirectory('ct-code-'));
    const home = join(path, 'home');
    for (const directory of [home, join(home, 'policy')]) mkdirSync(directory, { mode: 0o700 });
    writeFileSync(join(home, 'policy/data.yml'), policyData({}), { mode: 0o600 });
    for (const image of images) await testImage(image);
    await borrowImages(home);
    const registry = cleanup.use(await packageRegistry());
    cleanup.defer(() => stopHost(home));
    return new CodeHost(path, home, registry, cleanup.move());
  }

  /** Runs the job in a VM of its own; returns when it is over. */
  async run({ steps, exec, verify, image = 'debian-12', files = {} }: CodeJob): Promise<CodeRun> {
    const root = join(this.#directory, `job-${this.#jobs++}`);
    const job = {
      image,
      network: [`tcp://${REGISTRY_NAME}:${this.registry.port}`],
      resources: { memory: '1G' },
      // What is wrong with the registry stays wrong: npm need not try again after ten seconds.
      env: { REGISTRY: this.origin, npm_config_registry: this.origin, npm_config_fetch_retries: '0' },
      ...(exec === undefined ? {} : { exec }),
      ...(verify === undefined ? {} : { verify }),
      steps,
    };
    const all = { ...files, 'ct.yml': JSON.stringify({ version: 1, jobs: { job } }) };
    for (const [name, content] of Object.entries(all)) {
      mkdirSync(dirname(join(root, name)), { recursive: true });
      writeFileSync(join(root, name), content);
    }
    const outcome = await this.ct(['run', 'job', '--json'], root);
    const report = JSON.parse(outcome.stdout || '{"jobs":[{}]}').jobs[0];
    const alerts = this.#alerts().filter(({ run }) => run.id === report.run);
    return { outcome, job: report, alerts, home: this.home };
  }

  /** Replaces `exec:` of the policy, and adds other keys; undone by disposal. */
  policy(change: { readonly exec?: object; readonly verify?: object }): Disposable {
    const path = join(this.home, 'policy/data.yml');
    writeFileSync(path, policyData(change));
    return { [Symbol.dispose]: () => writeFileSync(path, policyData({})) };
  }

  ct(args: readonly string[], cwd: string = this.#directory): Promise<CtOutcome> {
    return runCt(args, { cwd, env: { CT_HOME: this.home, XDG_CONFIG_HOME: '/nonexistent' } });
  }

  /** Whether the process that was the VM of the run is gone, and the daemon says so. */
  async isGone(run: string): Promise<boolean> {
    const detail = await (await findHost(this.home))?.run(run);
    const pid = detail?.vm?.pid;
    return detail?.state === 'ended' && pid !== undefined && !existsSync(`/proc/${pid}`);
  }

  #alerts(): readonly Alert[] {
    const directory = join(this.home, 'alerts');
    if (!existsSync(directory)) return [];
    return readdirSync(directory)
      .filter((name) => name.endsWith('.jsonl'))
      .flatMap((name) => readFileSync(join(directory, name), 'utf8').split('\n'))
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Alert)
      .filter(({ rule }) => rule.startsWith('ct.exec.'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#cleanup.disposeAsync();
  }
}

/** JSON is YAML. */
function policyData(change: object): string {
  const all = ['*'];
  return JSON.stringify({
    version: 1,
    egress: { mode: 'enforce', allow: all, resolve: { [REGISTRY_NAME]: '127.0.0.1' } },
    exec: { inline: ['perl'] },
    admission: { trust: ['local'], repositories: all, refs: all, actors: all, images: all },
    limits: { cpus: 64, memory: '256G', disk: '1T', timeout: '1d' },
    ...change,
  });
}
