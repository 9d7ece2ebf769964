/**
 * Policy data: what operators write (`data.yml`, version 1), checked, and prepared for Rego as `data.ct.config`.
 *
 * Preparation is spelling and indexes: one form for names, rules by the host that they are looked up by, settings of a
 * repository completed by the general ones. It decides nothing. What is not in the file is never "nothing forbidden":
 * everything that allows is required or empty.
 */
import { didYouMean } from '../core/suggest.ts';
import { type Problem, parseYaml, problemsError, type SourceText } from '../core/yaml-source.ts';
import { isPresetName, PRESET_NAMES, type PresetName } from '../egress/presets/names.ts';
import { Locations } from '../job/schema/schema.ts';
import type { AuditMode } from '../protocol/audit.ts';
import { CODE_ORIGINS, type CodeOrigin, type CodePolicyMode } from '../protocol/code.ts';
import { MAX_INTERPRETER_BYTES } from '../protocol/limits.ts';
import type { NetworkMode } from '../protocol/network.ts';
import { parseNetwork } from './address.ts';
import { type Data, policyDataSchema } from './data-schema.ts';
import { canonicalHost, type Destination, indexDestinations, parseDestination } from './destination.ts';
import type { DetectAction } from './detection.ts';
import {
  DEFAULT_IMAGE_RULES,
  type ImageRules,
  type ImageTrust,
  lowerImageRules,
  lowerImageTrust,
} from './image-rules.ts';
import type { DestinationIndex } from './input.ts';
import type { NamePatterns } from './signers.ts';
import {
  DEFAULT_VERIFY_RULES,
  type JobTrustData,
  lowerJobTrust,
  lowerRegistries,
  lowerVerifyRules,
  type Registries,
  type VerifyRules,
} from './verify-rules.ts';

/** Written by the operator and generated lists; parsed whole in memory. */
export const MAX_POLICY_DATA_BYTES = 4 * 1024 * 1024;
const DEFAULT_AUDIT: AuditMode = 'on';
const DEFAULT_CODE_MODE: CodePolicyMode = 'off';

/** Hosts by what they are looked up by; values are the entries as written. */
export interface HostList {
  /** Names and single addresses. */
  readonly exact: Readonly<Record<string, string>>;
  /** `*.` patterns without their `*.`. */
  readonly below: Readonly<Record<string, string>>;
  /** By the beginning of the addresses in them: two groups (`10.1`), one (`10`), or none (`*`) if the prefix is that short. */
  readonly networks: Readonly<Record<string, readonly string[]>>;
}

export interface Grant {
  /** Of the secret; without its `*`, if `prefix`. */
  readonly name: string;
  readonly prefix: boolean;
  readonly trust: Readonly<Record<string, true>>;
  readonly repositories: NamePatterns;
  readonly refs: NamePatterns;
}

/** What may be asked for. */
export interface Ceiling extends DestinationIndex {
  readonly presets: Readonly<Record<string, true>>;
}

export interface Limits {
  readonly cpus: number;
  readonly memory_mib: number;
  readonly disk_mib: number;
  readonly timeout_seconds: number;
}

/** Which code may run. */
export interface CodeRules {
  readonly mode: CodePolicyMode;
  readonly trust: Readonly<Partial<Record<CodeOrigin, true>>>;
  /** Names and paths of interpreters, and `*`. */
  readonly inline: Readonly<Record<string, true>>;
}

export interface InterpreterRule {
  readonly endings: readonly string[];
  readonly options: readonly string[];
  readonly arguments: 'every' | 'first';
}

export interface Profile {
  readonly mode: NetworkMode;
  readonly audit: AuditMode;
  readonly exec: CodeRules;
  /** Key of `ceilings`. */
  readonly ceiling: string;
  readonly always: readonly Destination[];
  readonly trust: Readonly<Record<string, true>>;
  readonly refs: NamePatterns;
  readonly actors: NamePatterns;
  readonly images: NamePatterns;
  readonly image: ImageRules;
  readonly limits: Limits;
  readonly verify: VerifyRules;
  /** In addition to the general ones. */
  readonly secrets: readonly Grant[];
  /** Where in the policy data a setting is written: what to ask those for who run the host. */
  readonly keys: Readonly<Record<SettingOfProfile, string>>;
}

const SETTINGS_OF_PROFILE = ['trust', 'refs', 'actors', 'images', 'limits'] as const;
type SettingOfProfile = (typeof SETTINGS_OF_PROFILE)[number];

const GENERAL_KEYS: Profile['keys'] = {
  trust: 'admission: trust',
  refs: 'admission: refs',
  actors: 'admission: actors',
  images: 'admission: images',
  limits: 'limits',
};

/** Of the settings of a repository, which have only some of them. */
function keysOf(
  pattern: string,
  settings: Readonly<Partial<Record<SettingOfProfile, unknown>>>,
): Profile['keys'] {
  const own = SETTINGS_OF_PROFILE.filter((key) => settings[key] !== undefined);
  return {
    ...GENERAL_KEYS,
    ...Object.fromEntries(own.map((key) => [key, `repositories: ${pattern}: ${key}`])),
  };
}

/** `data.ct.config`, version 1. */
export interface PolicyConfig {
  readonly version: 1;
  readonly egress: {
    readonly block: HostList;
    readonly ban: HostList;
    readonly private: {
      readonly exact: Readonly<Record<string, PrivateNetworks>>;
      readonly below: Readonly<Record<string, PrivateNetworks>>;
      readonly any: PrivateNetworks;
    };
  };
  readonly repositories: NamePatterns;
  readonly secrets: readonly Grant[];
  readonly general: Profile;
  /** Settings of repositories, complete; of `owner/*` under its beginning. */
  readonly profiles: {
    readonly exact: Readonly<Record<string, Profile>>;
    readonly prefixes: Readonly<Record<string, Profile>>;
  };
  readonly image: {
    readonly revoked: Readonly<Record<string, true>>;
    readonly running: 'finish' | 'terminate';
  };
  /** By path, besides those that `ct.exec` knows. */
  readonly interpreters: Readonly<Record<string, InterpreterRule>>;
  readonly verify: { readonly registries: Registries };
  /** By the name of a rule of `ct.detect`. */
  readonly detect: Readonly<Record<string, DetectAction>>;
  /** Absent: strangers' jobs do not run. */
  readonly untrusted?: {
    readonly mode: NetworkMode;
    readonly audit: AuditMode;
    readonly exec: CodeRules;
    readonly ceiling: string;
    readonly images: NamePatterns;
    readonly image: ImageRules;
    readonly limits: Limits;
    readonly verify: VerifyRules;
  };
  readonly ceilings: Readonly<Record<string, Ceiling>>;
}

export interface PrivateNetworks {
  readonly networks: readonly string[];
  /** Networks of one address. */
  readonly addresses: Readonly<Record<string, true>>;
}

export interface PolicyData {
  readonly config: PolicyConfig;
  /** Addresses that the operator has fixed, per canonical name: `source: operator` of address facts. */
  readonly resolve: ReadonlyMap<string, string>;
  /** Whose signatures of images are verified. */
  readonly imageTrust: ImageTrust;
  /** Whose signatures of jobs are verified. */
  readonly jobTrust: JobTrustData;
  /** Ask this OPA server. */
  readonly opaUrl?: string;
}

export interface LoweringContext {
  /** What a preset of an `always` list stands for on this host. May throw PRESET_UNCONFIGURED. */
  readonly resolvePreset: (name: PresetName) => readonly Destination[];
}

/** Throws POLICY_INVALID with every problem at its line and column. */
export function parsePolicyData(source: SourceText, context: LoweringContext): PolicyData {
  const problems: Problem[] = [];
  const report = (problem: Problem): void => {
    problems.push({ ...problem, code: 'POLICY_INVALID' });
  };
  const { root, problems: syntax } = parseYaml(source, 'POLICY_INVALID');
  syntax.forEach(report);
  const locations = new Locations();
  if (root === undefined && problems.length === 0) {
    report({
      code: 'POLICY_INVALID',
      span: { source, start: 0, end: 0 },
      message: 'the file is empty',
      hint: 'policies/default.yml shows what belongs here',
    });
  }
  const data = root === undefined ? undefined : policyDataSchema.parse(root, { locations, report });
  if (data === undefined || problems.length > 0) throw problemsError(problems, 'POLICY_INVALID');
  const lowered = new Lowering(locations, report, context).lower(data);
  if (problems.length > 0) throw problemsError(problems, 'POLICY_INVALID');
  return lowered;
}

// ----------------------------------------------------------------------------------------------- lowering

class Lowering {
  readonly #locations: Locations;
  readonly #report: (problem: Problem) => void;
  readonly #context: LoweringContext;
  readonly #ceilings: Record<string, Ceiling> = Object.create(null);

  constructor(locations: Locations, report: (problem: Problem) => void, context: LoweringContext) {
    this.#locations = locations;
    this.#report = report;
    this.#context = context;
  }

  lower(data: Data): PolicyData {
    const { admission, egress, untrusted } = data;
    const general: Profile = {
      mode: egress.mode,
      audit: data.audit ?? DEFAULT_AUDIT,
      exec: codeRules(data.exec, { mode: DEFAULT_CODE_MODE, trust: members(CODE_ORIGINS), inline: {} }),
      ceiling: this.#ceiling('general', egress.allow),
      always: this.#always(egress.always),
      trust: members(admission.trust),
      refs: this.#patterns(admission.refs),
      actors: this.#patterns(admission.actors, true),
      images: this.#patterns(admission.images),
      image: this.#imageRules(data.image, DEFAULT_IMAGE_RULES),
      limits: lowerLimits(data.limits),
      verify: this.#verifyRules(data.verify, DEFAULT_VERIFY_RULES),
      secrets: [],
      keys: GENERAL_KEYS,
    };
    const profiles = { exact: emptyRecord<Profile>(), prefixes: emptyRecord<Profile>() };
    for (const [pattern, settings] of Object.entries(data.repositories ?? {})) {
      const name = pattern.toLowerCase();
      const profile: Profile = {
        mode: settings.egress?.mode ?? general.mode,
        audit: settings.audit ?? general.audit,
        exec: codeRules(settings.exec, general.exec),
        ceiling:
          settings.egress?.allow === undefined
            ? general.ceiling
            : this.#ceiling(`repository ${name}`, settings.egress.allow),
        always: settings.egress?.always === undefined ? general.always : this.#always(settings.egress.always),
        trust: settings.trust === undefined ? general.trust : members(settings.trust),
        refs: settings.refs === undefined ? general.refs : this.#patterns(settings.refs),
        actors: settings.actors === undefined ? general.actors : this.#patterns(settings.actors, true),
        images: settings.images === undefined ? general.images : this.#patterns(settings.images),
        image: this.#imageRules(settings.image, general.image),
        limits: { ...general.limits, ...lowerLimits(settings.limits ?? {}) },
        verify: this.#verifyRules(settings.verify, general.verify),
        secrets: Object.entries(settings.secrets ?? {}).map(([secret, grant]) =>
          this.#grant(secret, { ...grant, repositories: ['*'] }),
        ),
        keys: keysOf(name, settings),
      };
      if (name.endsWith('*')) profiles.prefixes[name.slice(0, -1)] = profile;
      else profiles.exact[name] = profile;
      if (profile.trust['untrusted'] && untrusted === undefined) this.#wantUntrusted(settings, 'trust');
    }
    if (general.trust['untrusted'] && untrusted === undefined) this.#wantUntrusted(admission, 'trust');
    const config: PolicyConfig = {
      version: 1,
      egress: {
        block: this.#hostList(egress.block ?? []),
        ban: this.#hostList(egress.ban ?? []),
        private: this.#private(egress.private ?? {}),
      },
      repositories: this.#patterns(admission.repositories, true),
      secrets: Object.entries(data.secrets ?? {}).map(([secret, grant]) => this.#grant(secret, grant)),
      general,
      profiles,
      image: {
        revoked: members(data.image?.revoked ?? []),
        running: data.image?.running ?? 'finish',
      },
      interpreters: this.#interpreters(data.exec?.interpreters ?? []),
      verify: { registries: lowerRegistries(data.verify ?? {}) },
      detect: data.detect ?? {},
      ...(untrusted === undefined
        ? {}
        : {
            untrusted: {
              mode: untrusted.egress.mode ?? general.mode,
              audit: untrusted.audit ?? general.audit,
              exec: codeRules(untrusted.exec, { ...general.exec, inline: {} }),
              ceiling: this.#ceiling('untrusted', untrusted.egress.allow),
              images: untrusted.images === undefined ? general.images : this.#patterns(untrusted.images),
              image: this.#imageRules(untrusted.image, general.image),
              limits: { ...general.limits, ...lowerLimits(untrusted.limits ?? {}) },
              verify: this.#verifyRules(untrusted.verify, DEFAULT_VERIFY_RULES),
            },
          }),
      ceilings: this.#ceilings,
    };
    return {
      config,
      resolve: this.#resolve(egress.resolve ?? {}),
      imageTrust: lowerImageTrust(data.image ?? {}, (...problem) => this.#wrong(...problem)),
      jobTrust: lowerJobTrust(data.verify ?? {}, (...problem) => this.#wrong(...problem)),
      ...(data.opaUrl === undefined ? {} : { opaUrl: data.opaUrl }),
    };
  }

  #imageRules(data: Parameters<typeof lowerImageRules>[0] | undefined, base: ImageRules): ImageRules {
    return lowerImageRules(data ?? {}, base, (entries) => this.#patterns(entries));
  }

  #verifyRules(data: Parameters<typeof lowerVerifyRules>[0] | undefined, base: VerifyRules): VerifyRules {
    return lowerVerifyRules(data ?? {}, base, (entries) => this.#patterns(entries));
  }

  #wrong(container: object, key: string | number, message: string, hint?: string): void {
    this.#report({ code: 'POLICY_INVALID', span: this.#locations.of(container, key), message, hint });
  }

  #wantUntrusted(container: object, key: string): void {
    this.#wrong(
      container,
      key,
      '`untrusted` jobs may run, but nothing says what they get',
      'add a key `untrusted:` with `egress: {allow: []}`, or remove `untrusted` here',
    );
  }

  #interpreters(
    entries: NonNullable<NonNullable<Data['exec']>['interpreters']>,
  ): Record<string, InterpreterRule> {
    const interpreters = emptyRecord<InterpreterRule>();
    for (const [
      index,
      { path, endings = [], options = [], arguments: named = 'first' },
    ] of entries.entries()) {
      if (interpreters[path]) this.#wrong(entries, index, `\`${path}\` is in the list already`);
      const bytes = [path, ...endings, ...options].reduce(
        (sum, word) => sum + Buffer.byteLength(word) + 1,
        1,
      );
      if (bytes > MAX_INTERPRETER_BYTES)
        this.#wrong(entries, index, `\`${path}\` has more endings and options than fit`);
      interpreters[path] = { endings, options, arguments: named };
    }
    return interpreters;
  }

  #destinations(entries: readonly string[]): {
    readonly presets: PresetName[];
    readonly destinations: Destination[];
  } {
    const presets: PresetName[] = [];
    const destinations: Destination[] = [];
    for (const [index, entry] of entries.entries()) {
      const parsed = parseDestination(entry, { everything: true });
      if ('wrong' in parsed) this.#wrong(entries, index, parsed.wrong, parsed.hint);
      else if (parsed.kind === 'destinations') destinations.push(...parsed.destinations);
      else if (isPresetName(parsed.name)) presets.push(parsed.name);
      else {
        const known = `the presets are ${PRESET_NAMES.map((name) => `\`${name}\``).join(', ')}; a host has a dot, or \`tcp://HOST:PORT\``;
        this.#wrong(
          entries,
          index,
          `there is no preset \`${parsed.name}\``,
          didYouMean(parsed.name, PRESET_NAMES) ?? known,
        );
      }
    }
    return { presets, destinations };
  }

  #ceiling(id: string, entries: readonly string[]): string {
    const { presets, destinations } = this.#destinations(entries);
    this.#ceilings[id] = { ...indexDestinations(destinations), presets: members(presets) };
    return id;
  }

  #always(entries: readonly string[] = []): readonly Destination[] {
    const { presets, destinations } = this.#destinations(entries);
    return [...presets.flatMap((name) => this.#context.resolvePreset(name)), ...destinations];
  }

  #patterns(entries: readonly string[], ignoreCase = false): NamePatterns {
    const exact = emptyRecord<true>();
    const prefixes: string[] = [];
    let any = false;
    for (const [index, written] of entries.entries()) {
      const entry = ignoreCase ? written.toLowerCase() : written;
      const star = entry.indexOf('*');
      if (entry === '*') any = true;
      else if (star === -1) exact[entry] = true;
      else if (star === entry.length - 1) prefixes.push(entry.slice(0, -1));
      else
        this.#wrong(
          entries,
          index,
          `\`${written}\` has a \`*\` before its end`,
          'a pattern is a beginning followed by `*`, which stands for anything',
        );
    }
    return { any, exact, prefixes };
  }

  #grant(
    secret: string,
    grant: {
      readonly trust: readonly string[];
      readonly repositories: readonly string[];
      readonly refs: readonly string[];
    },
  ): Grant {
    const prefix = secret.endsWith('*');
    return {
      name: prefix ? secret.slice(0, -1) : secret,
      prefix,
      trust: members(grant.trust),
      repositories: this.#patterns(grant.repositories, true),
      refs: this.#patterns(grant.refs),
    };
  }

  #hostList(entries: readonly string[]): HostList {
    const exact = emptyRecord<string>();
    const below = emptyRecord<string>();
    const networks = emptyRecord<string[]>();
    for (const [index, entry] of entries.entries()) {
      const network = parseNetwork(entry);
      if (network !== undefined) {
        if ('wrong' in network) this.#wrong(entries, index, network.wrong);
        else if (network.prefixBits === network.widthBits) exact[network.text] = entry;
        else {
          const key = networkKey(network.text, network.prefixBits, network.widthBits);
          networks[key] = [...(networks[key] ?? []), network.text];
        }
        continue;
      }
      const host = canonicalHost(entry);
      if ('wrong' in host)
        this.#wrong(
          entries,
          index,
          host.wrong,
          'write a name, `*.` and a name, an address, or a network such as `192.0.2.0/24`',
        );
      else if (host.host.startsWith('*.')) below[host.host.slice(2)] = entry;
      else exact[host.host] = entry;
    }
    return { exact, below, networks };
  }

  #private(entries: Readonly<Record<string, readonly string[]>>): PolicyConfig['egress']['private'] {
    const exact = emptyRecord<PrivateNetworks>();
    const below = emptyRecord<PrivateNetworks>();
    let any: PrivateNetworks = { networks: [], addresses: {} };
    for (const [key, texts] of Object.entries(entries)) {
      const networks: string[] = [];
      const addresses = emptyRecord<true>();
      for (const [index, entry] of texts.entries()) {
        const network = parseNetwork(entry);
        if (network === undefined)
          this.#wrong(texts, index, `\`${entry}\` is no network`, 'write `10.0.0.0/8`, or a single address');
        else if ('wrong' in network) this.#wrong(texts, index, network.wrong);
        else if (network.prefixBits === network.widthBits) addresses[network.text] = true;
        else networks.push(network.text);
      }
      const lowered = { networks, addresses };
      if (key === '*') {
        any = lowered;
        continue;
      }
      const host = canonicalHost(key);
      if ('wrong' in host)
        this.#wrong(entries, key, host.wrong, 'write a name, `*.` and a name, an address, or `*`');
      else if (host.host.startsWith('*.')) below[host.host.slice(2)] = lowered;
      else exact[host.host] = lowered;
    }
    return { exact, below, any };
  }

  #resolve(entries: Readonly<Record<string, string>>): ReadonlyMap<string, string> {
    const resolve = new Map<string, string>();
    for (const [key, entry] of Object.entries(entries)) {
      const host = canonicalHost(key);
      const address = canonicalHost(entry);
      if ('wrong' in host) this.#wrong(entries, key, host.wrong, host.hint);
      else if (host.literal || host.host.startsWith('*.'))
        this.#wrong(entries, key, `\`${key}\` is not one name`, 'write the whole name of one host');
      else if ('wrong' in address || !address.literal)
        this.#wrong(entries, key, `\`${entry}\` is no address`, 'write an address such as `192.0.2.7`');
      else resolve.set(host.host, address.host);
    }
    return resolve;
  }
}

function codeRules(
  { mode, trust, inline }: Partial<Pick<NonNullable<Data['exec']>, 'mode' | 'trust' | 'inline'>> = {},
  otherwise: CodeRules,
): CodeRules {
  return {
    mode: mode ?? otherwise.mode,
    trust: trust === undefined ? otherwise.trust : members(trust),
    inline: inline === undefined ? otherwise.inline : members(inline),
  };
}

function lowerLimits<L extends Partial<Data['limits']>>(
  limits: L,
): L extends Data['limits'] ? Limits : Partial<Limits>;
function lowerLimits({ cpus, memory, disk, timeout }: Partial<Data['limits']>): Partial<Limits> {
  return {
    ...(cpus === undefined ? {} : { cpus }),
    ...(memory === undefined ? {} : { memory_mib: memory }),
    ...(disk === undefined ? {} : { disk_mib: disk }),
    ...(timeout === undefined ? {} : { timeout_seconds: Math.floor(timeout / 1000) }),
  };
}

/**
 * Under which key of {@link HostList.networks} a network is filed: Rego looks an address up by its first two groups, its first
 * one, and `*`. A group is eight bits of IPv4, sixteen of IPv6; a shortened zero group is `0`.
 */
function networkKey(text: string, prefixBits: number, widthBits: number): string {
  const v4 = widthBits === 32;
  const groupBits = v4 ? 8 : 16;
  const separator = v4 ? '.' : ':';
  const groups = text
    .split(separator)
    .slice(0, 2)
    .map((group) => (group === '' || group.startsWith('/') ? '0' : group));
  if (prefixBits >= 2 * groupBits) return groups.join(separator);
  return prefixBits >= groupBits ? (groups[0] as string) : '*';
}

function members(names: readonly string[]): Readonly<Record<string, true>> {
  const record = emptyRecord<true>();
  for (const name of names) record[name] = true;
  return record;
}

/** No prototype: `__proto__` and `constructor` are names like any other. */
function emptyRecord<T>(): Record<string, T> {
  return Object.create(null);
}
