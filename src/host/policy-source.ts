/** Which policy counts on this host, and the engine that decides by it. */
import { createHash } from 'node:crypto';
import { existsSync, lstatSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { installRoot } from '../core/install.ts';
import { requireUnchangeable } from '../core/paths.ts';
import { readSource } from '../core/source-text.ts';
import type { PresetName } from '../egress/presets/names.ts';
import { MAX_POLICY_DATA_BYTES, type PolicyData, parsePolicyData } from '../policy/data.ts';
import type { Destination } from '../policy/destination.ts';
import { loadWasmEngine, type PolicyEngine } from '../policy/engine.ts';
import type { JobTrustData } from '../policy/verify-rules.ts';
import type { JobTrust } from '../verification/job-trust.ts';
import { OpaClient } from './opa-client.ts';
import { compilePolicy, regoSources } from './policy-compiler.ts';

export const shippedPolicies: string = join(installRoot, 'policies');
/** The shipped rules: `ct.admission`, `ct.egress` and what they share. */
export const shippedRules: string = join(shippedPolicies, 'ct');
const SYSTEM_DIRECTORY = '/etc/ct/policy';
/** Trusts nobody. */
const NOBODY: JobTrust = {
  bundles: undefined,
  identities: [],
  ssh: [],
  registryKeys: new Map(),
  source: { data: { signers: [] }, files: new Map() },
};
/** Trusted roots, lists of signers and keys. */
const MAX_TRUST_FILE_BYTES = 4 * 1024 * 1024;
/** That of the public Sigstore has 7 KiB. */
const MAX_TRUSTED_ROOT_BYTES = 4 * 1024 * 1024;
const DATA_FILES = ['data.yml', 'data.json'];

export type ResolvePresets = (
  names: readonly PresetName[],
) => Promise<readonly { readonly name: PresetName; readonly destinations: readonly Destination[] }[]>;

export interface PolicySourceOptions {
  readonly ctHome: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** What presets in `always` lists stand for here; asked once, if there are any. May reject with PRESET_UNCONFIGURED. */
  readonly resolvePresets: ResolvePresets;
  /** Ask this OPA server; goes before `opa-url` of the data. */
  readonly opaUrl?: string;
  /** The machine's own policy; `/etc/ct/policy` if absent. */
  readonly systemDirectory?: string;
  readonly progress?: (message: string) => void;
  readonly signal?: AbortSignal;
}

export interface LoadedPolicySource extends Disposable {
  readonly engine: PolicyEngine;
  /** Hex SHA-256 of rules and data; of the data and the server's URL with an OPA server. */
  readonly revision: string;
  readonly data: PolicyData;
  /** `trusted_root.json` that `image: trusted-root` names. */
  readonly imageRoot?: Uint8Array;
  /** Absent: the shipped policy counts. */
  readonly directory?: string;
  /** Whose signatures of jobs are verified. */
  readonly jobTrust: JobTrust;
  /** For people: `the policy in /etc/ct/policy`. */
  readonly description: string;
}

/**
 * The directory whose policy counts, and no other does: CT_POLICY_DIR, `/etc/ct/policy`, `policy` in CT_HOME, whichever of these
 * is first; undefined if there is none of them: then the shipped policy does.
 */
export function policyDirectory(
  options: Pick<PolicySourceOptions, 'ctHome' | 'env' | 'systemDirectory'>,
): string | undefined {
  const named = options.env['CT_POLICY_DIR'];
  if (named) return resolve(named);
  const candidates = [options.systemDirectory ?? SYSTEM_DIRECTORY, join(options.ctHome, 'policy')];
  // One that is there and cannot be read must not give way to a laxer one.
  return candidates.find((path) => lstatSync(path, { throwIfNoEntry: false }) !== undefined);
}

/**
 * Loads the policy of `directory`, or the shipped one. Throws POLICY_INVALID if data or Rego are wrong, CONFIG_INVALID if others
 * may write to them, REQUIREMENT_MISSING if Rego of one's own cannot be compiled here, PRESET_UNCONFIGURED, POLICY_UNAVAILABLE.
 */
export async function loadPolicy(
  directory: string | undefined,
  options: PolicySourceOptions,
): Promise<LoadedPolicySource> {
  const data = await readPolicyData(directory, options.resolvePresets);
  const opaUrl = options.opaUrl ?? data.opaUrl;
  const where = directory === undefined ? 'the policy that ct comes with' : `the policy in ${directory}`;
  const imageRoot = readImageRoot(directory, data);
  const trusted = await readJobTrust(directory, data.jobTrust);
  const found = {
    data,
    jobTrust: trusted.trust,
    ...(directory === undefined ? {} : { directory }),
    ...(imageRoot === undefined ? {} : { imageRoot }),
  };
  // Who signs is no part of what Rego sees, and decides all the same.
  const trust = JSON.stringify([
    trusted.digest,
    data.imageTrust,
    imageRoot && createHash('sha256').update(imageRoot).digest('hex'),
  ]);
  if (opaUrl !== undefined) {
    const revision = digest(opaUrl, JSON.stringify(data.config), trust);
    const engine = new OpaClient({ url: opaUrl, revision });
    return {
      ...found,
      engine,
      revision,
      description: `the OPA server at ${opaUrl}, with the data of ${where}`,
      [Symbol.dispose]: () => engine[Symbol.dispose](),
    };
  }
  const hasRules = directory !== undefined && regoSources(directory).length > 0;
  const wasm = hasRules ? (await compilePolicy([shippedRules, directory], options)).wasm : readShipped();
  const revision = digest(
    createHash('sha256').update(wasm).digest('hex'),
    JSON.stringify(data.config),
    trust,
  );
  const engine = await loadWasmEngine({
    wasm,
    config: data.config,
    revision,
    nowNs: () => process.hrtime.bigint(),
  });
  return { ...found, engine, revision, description: where, [Symbol.dispose]: () => {} };
}

/**
 * The data of a policy alone, checked and prepared. `resolvePresets` is asked once, for those of its `always` lists. Throws as
 * {@link loadPolicy} does.
 */
export async function readPolicyData(
  directory: string | undefined,
  resolvePresets: ResolvePresets,
): Promise<PolicyData> {
  if (directory !== undefined) requireOwnTree(directory);
  // Reading does not wait: what it asks for is resolved, and it is read again.
  const asked = new Set<PresetName>();
  const note = (name: PresetName): readonly Destination[] => {
    asked.add(name);
    return [];
  };
  const data = readData(directory, note);
  if (asked.size === 0) return data;
  const resolved = new Map(
    (await resolvePresets([...asked])).map(({ name, destinations }) => [name, destinations] as const),
  );
  return readData(directory, (name) => resolved.get(name) ?? []);
}

/** What is in it is checked when it is first used (src/verification/trust.ts). */
function readImageRoot(directory: string | undefined, { imageTrust }: PolicyData): Uint8Array | undefined {
  const { trustedRoot } = imageTrust;
  if (trustedRoot === undefined) return undefined;
  const path = join(directory ?? shippedPolicies, trustedRoot);
  const stats = statSync(path, { throwIfNoEntry: false });
  if (!stats?.isFile() || stats.size > MAX_TRUSTED_ROOT_BYTES) {
    throw new CtError(
      'POLICY_INVALID',
      `\`image: trusted-root\` of the policy: ${path} is no file of a trusted root`,
      {
        hint: 'put the trusted_root.json of the Sigstore into the policy directory',
      },
    );
  }
  return readFileSync(path);
}

/** Signers with the files that the data names; the digest is of all of it. Throws TRUST_INVALID, POLICY_INVALID. */
async function readJobTrust(
  directory: string | undefined,
  data: JobTrustData,
): Promise<{ readonly trust: JobTrust; readonly digest: string }> {
  const hash = createHash('sha256').update(JSON.stringify(data));
  if (data.signers.length === 0 && data.npmKeys === undefined)
    return { trust: NOBODY, digest: hash.digest('hex') };
  // It loads Sigstore's verifier, which takes longer than all else here.
  const { loadJobTrust } = await import('../verification/job-trust.ts');
  const trust = loadJobTrust(data, (name) => {
    const bytes = readTrustFile(directory, name);
    hash.update(bytes);
    return bytes;
  });
  return { trust, digest: hash.digest('hex') };
}

function readTrustFile(directory: string | undefined, name: string): Buffer {
  const path = join(directory ?? shippedPolicies, name);
  try {
    if (statSync(path).size > MAX_TRUST_FILE_BYTES) throw new Error('it is too large');
    return readFileSync(path);
  } catch (error) {
    throw new CtError(
      'POLICY_INVALID',
      `${path}, which the policy names, cannot be read: ${messageOf(error)}`,
      {
        cause: error,
      },
    );
  }
}

function readData(
  directory: string | undefined,
  resolvePreset: (name: PresetName) => readonly Destination[],
): PolicyData {
  const path = directory === undefined ? join(shippedPolicies, 'default.yml') : dataFile(directory);
  const source = readSource(path, path, {
    maxBytes: MAX_POLICY_DATA_BYTES,
    code: 'POLICY_INVALID',
    missingCode: 'POLICY_INVALID',
  });
  return parsePolicyData(source, { resolvePreset });
}

function dataFile(directory: string): string {
  const files = DATA_FILES.map((name) => join(directory, name)).filter((path) => existsSync(path));
  const [file, second] = files;
  if (file !== undefined && second === undefined) return file;
  throw new CtError(
    'POLICY_INVALID',
    file === undefined ? `${directory} has no data.yml` : `${directory} has both data.yml and data.json`,
    {
      hint:
        file === undefined
          ? `copy ${join(shippedPolicies, 'default.yml')} there as data.yml, and change it`
          : 'keep one of them',
    },
  );
}

/** The compiled rules that ct comes with. Throws POLICY_UNAVAILABLE if they are not what was shipped. */
function readShipped(): Uint8Array {
  try {
    const wasm = readFileSync(join(shippedPolicies, 'policy.wasm'));
    const made = JSON.parse(readFileSync(join(shippedPolicies, 'policy.json'), 'utf8')) as { wasm?: unknown };
    if (createHash('sha256').update(wasm).digest('hex') !== made.wasm) {
      throw new CtError(
        'POLICY_UNAVAILABLE',
        'policies/policy.wasm is not the one that policies/policy.json names',
      );
    }
    return wasm;
  } catch (error) {
    if (error instanceof CtError) throw error;
    throw new CtError(
      'POLICY_UNAVAILABLE',
      `the policy that ct comes with cannot be read: ${messageOf(error)}`,
      {
        cause: error,
      },
    );
  }
}

/** Whoever may write to a policy decides what jobs may do. */
function requireOwnTree(directory: string): void {
  const stats = statSync(directory, { throwIfNoEntry: false });
  if (!stats?.isDirectory()) throw new CtError('POLICY_INVALID', `${directory} is not a directory`);
  const paths = readdirSync(directory, { recursive: true, encoding: 'utf8' }).map((name) =>
    join(directory, name),
  );
  for (const path of [directory, ...paths]) requireOwn(path);
}

function requireOwn(path: string): void {
  const stats = statSync(path, { throwIfNoEntry: false });
  if (stats === undefined) throw new CtError('POLICY_INVALID', `${path} leads nowhere`);
  requireUnchangeable(path, stats, {
    foreign: `policy is yours or that of root; run: chown ${process.getuid?.()} ${path}`,
    writable: `it says what jobs may do; run: chmod go-w ${path}`,
  });
}

function digest(...parts: readonly string[]): string {
  return createHash('sha256').update(parts.join('\n')).digest('hex');
}
