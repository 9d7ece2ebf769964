/** The policy of this host, as the daemon uses it: loaded when its files change, and kept for as long as a run needs it. */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import type { PresetResolver } from '../egress/presets/index.ts';
import type { PresetName } from '../egress/presets/names.ts';
import type { ImageSigners } from '../image/evidence.ts';
import type { PolicyEngine } from '../policy/engine.ts';
import type { NetworkMode } from '../protocol/network.ts';
import type { JobTrust } from '../verification/job-trust.ts';
import type { FixedAddresses } from './dialer.ts';
import type { LoadedPolicySource, PolicySourceOptions } from './policy-source.ts';

/** One revision of policy and data. A run keeps the one that let it in. */
export interface CurrentPolicy {
  readonly engine: PolicyEngine;
  /** `egress.resolve` of its data. */
  readonly resolve: FixedAddresses;
  /** Undefined: the shipped policy counts. */
  readonly directory: string | undefined;
  /** Decisions are asked of this OPA server, if there is one. */
  readonly opaUrl: string | undefined;
  /** Whose signatures of images are verified, and with what. */
  readonly imageSigners: ImageSigners;
  /** What becomes of jobs that run in an image that is let in no longer. */
  readonly runningImages: 'finish' | 'terminate';
  /** The least strict mode that a job can have, where its repository has none of its own. */
  readonly mode: NetworkMode;
  /** Whose signatures of jobs are verified. */
  readonly jobTrust: JobTrust;
  /** It stays usable until disposal, also when another one counts by then. */
  hold(): Disposable;
}

export interface HostPolicy {
  /**
   * The policy as its files are now. Rejects with what is wrong with them (POLICY_INVALID names file and line),
   * POLICY_UNAVAILABLE or PRESET_UNCONFIGURED: then no job is let in.
   */
  current(): Promise<CurrentPolicy>;
}

export interface PolicyKeeperOptions
  extends Pick<PolicySourceOptions, 'ctHome' | 'env' | 'systemDirectory' | 'progress'> {
  readonly presets: Pick<PresetResolver, 'resolve'>;
  /** Called when a policy begins to count; undefined: the shipped one. What it throws is wrong with the policy, too. */
  readonly onLoad?: (directory: string | undefined) => void;
}

/** What stays wrong until files change. */
const LASTING = new Set(['POLICY_INVALID', 'CONFIG_INVALID']);

export class PolicyKeeper implements HostPolicy {
  readonly #options: PolicyKeeperOptions;
  /** Names of presets that the policy of #state gives every job. */
  #alwaysPresets: readonly string[] = [];
  #state: { readonly fingerprint: string; readonly policy: Promise<HeldPolicy> } | undefined;

  constructor(options: PolicyKeeperOptions) {
    this.#options = options;
  }

  async current(): Promise<CurrentPolicy> {
    const files = await this.#filesThatCount();
    const fingerprint = files + (await this.#presetsNow());
    if (this.#state?.fingerprint === fingerprint) return await this.#state.policy;
    const before = this.#state;
    const state = { fingerprint, policy: this.#load() };
    this.#state = state;
    void before?.policy.then(
      (policy) => policy.retire(),
      () => {},
    );
    try {
      const policy = await state.policy;
      // What it gives every job is known only now; the next look is to find it the same. Files are as they were before they were
      // read: one that changed meanwhile makes the next look load it again.
      if (this.#state === state) this.#state = { ...state, fingerprint: files + (await this.#presetsNow()) };
      return policy;
    } catch (error) {
      const lasts = error instanceof CtError && LASTING.has(error.code);
      if (this.#state === state && !lasts) this.#state = undefined;
      throw error;
    }
  }

  async #load(): Promise<HeldPolicy> {
    const { loadPolicy, policyDirectory } = await import('./policy-source.ts');
    const directory = policyDirectory(this.#options);
    let asked: readonly PresetName[] = [];
    const loaded = await loadPolicy(directory, {
      ...this.#options,
      resolvePresets: (names) => {
        asked = names;
        return this.#options.presets.resolve(names);
      },
    });
    this.#alwaysPresets = asked;
    this.#options.onLoad?.(directory);
    return new HeldPolicy(loaded);
  }

  /** Changes when another policy counts, and when a file of it changes. */
  async #filesThatCount(): Promise<string> {
    const { policyDirectory } = await import('./policy-source.ts');
    const directory = policyDirectory(this.#options);
    return JSON.stringify([directory ?? null, directory === undefined ? [] : filesOf(directory)]);
  }

  /** Changes when a preset stands for something else. */
  async #presetsNow(): Promise<string> {
    // What cannot be resolved any more may not be asked for any more, either: loading tells.
    const presets = await this.#options.presets.resolve(this.#alwaysPresets).then(
      (resolved) => resolved.map(({ destinations }) => destinations),
      (error) => messageOf(error),
    );
    return JSON.stringify(presets);
  }
}

class HeldPolicy implements CurrentPolicy {
  readonly #loaded: LoadedPolicySource;
  #holders = 0;
  #isRetired = false;

  constructor(loaded: LoadedPolicySource) {
    this.#loaded = loaded;
  }

  get engine(): PolicyEngine {
    return this.#loaded.engine;
  }

  get resolve(): FixedAddresses {
    return this.#loaded.data.resolve;
  }

  get directory(): string | undefined {
    return this.#loaded.directory;
  }

  get jobTrust(): JobTrust {
    return this.#loaded.jobTrust;
  }

  get opaUrl(): string | undefined {
    return this.#loaded.data.opaUrl;
  }

  get mode(): NetworkMode {
    return this.#loaded.data.config.general.mode;
  }

  get imageSigners(): ImageSigners {
    const { data, imageRoot, revision } = this.#loaded;
    return { revision, signers: data.imageTrust.signers, trustedRoot: imageRoot };
  }

  get runningImages(): 'finish' | 'terminate' {
    return this.#loaded.data.config.image.running;
  }

  hold(): Disposable {
    this.#holders += 1;
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#holders -= 1;
        this.#letGo();
      },
    };
  }

  /** Another one counts. */
  retire(): void {
    this.#isRetired = true;
    this.#letGo();
  }

  #letGo(): void {
    if (this.#isRetired && this.#holders === 0) this.#loaded[Symbol.dispose]();
  }
}

/** Everything in the directory, which may be a link to one, as far as stat(2) tells files apart. */
function filesOf(directory: string): string[] {
  if (!statSync(directory, { throwIfNoEntry: false })?.isDirectory()) return [];
  const names = readdirSync(directory, { recursive: true, encoding: 'utf8' }).sort();
  return ['', ...names].map((name) => {
    const stats = statSync(join(directory, name), { bigint: true, throwIfNoEntry: false });
    return `${name} ${stats?.ino} ${stats?.size} ${stats?.mtimeNs} ${stats?.ctimeNs} ${stats?.mode} ${stats?.uid}`;
  });
}
