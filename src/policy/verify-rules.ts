/**
 * What operators say about signatures of jobs (`verify:` of the policy data), checked and prepared for Rego: who signs, and what
 * has to be signed. Files that it names lie in the policy directory.
 */
import { list } from '../job/schema/collections.ts';
import { object, optional, required } from '../job/schema/objects.ts';
import { oneOf, text } from '../job/schema/scalars.ts';
import type { Infer } from '../job/schema/schema.ts';
import { DEPENDENCY_LEVELS, type DependencyLevel, MAX_MANIFESTS } from '../protocol/verify.ts';
import {
  ANY_NAME,
  lowerSigner,
  lowerSigners,
  type NamedSigner,
  type NamePatterns,
  type PatternReader,
  policyFile,
  signerFields,
  signersField,
  trustedRootField,
  type WrongReporter,
  word,
} from './signers.ts';

const MAX_NAMES = 5000;
const MAX_REGISTRIES = 100;
const signerNames = list(word, {
  max: MAX_NAMES,
  expected: 'a list of names of `signers`, or beginnings followed by `*`',
});
const treePath = text({
  expected: 'a path in the workspace',
  pattern: '^(?!/)(?!.*(^|/)\\.{0,2}(/|$))[^\\x00]+$',
  maxLength: 4095,
});

const ruleFields = {
  commit: optional(oneOf('required', 'optional'), 'Whether the tree has to be that of a signed commit.', {
    fallback: '`optional`',
  }),
  'commit-signers': optional(signerNames, 'Those of `signers` who may sign commits.', { fallback: 'all' }),
  scripts: optional(
    list(treePath, { max: MAX_MANIFESTS, expected: 'a list of paths of signed manifests' }),
    'Signed manifests that have to be there and to hold.',
    { fallback: 'none' },
  ),
  'script-signers': optional(signerNames, 'Those of `signers` who may sign manifests.', { fallback: 'all' }),
  cover: optional(
    list(treePath, { max: MAX_NAMES, expected: 'a list of paths in the workspace' }),
    'Files and directories that have to be in one of the accepted manifests.',
    {
      fallback: 'none',
    },
  ),
  dependencies: optional(oneOf(...DEPENDENCY_LEVELS), 'What has to be proved of packages in lock files.', {
    fallback: '`none`',
  }),
  publishers: optional(signerNames, 'Those of `signers` whose provenance of packages counts.', {
    fallback: 'all',
  }),
};

export const verifyRulesSchema = object(ruleFields, { expected: 'a mapping of rules about what is signed' });

const registry = object(
  {
    urls: required(
      list(
        text({ expected: 'an https URL', pattern: '^https://[^\\s/?#@]+(/[^\\s?#@]*)?$', maxLength: 1000 }),
        {
          min: 1,
          max: MAX_REGISTRIES,
          expected: 'a list of URLs',
        },
      ),
      'Where packages may come from.',
      { advice: 'write `urls: [https://HOST/]`' },
    ),
    keys: optional(policyFile, 'The keys that the registry signs with, as it publishes them (JSON).'),
  },
  { expected: 'a mapping with `urls` and `keys`' },
);

export const verifySchema = object(
  {
    ...ruleFields,
    signers: signersField(
      object(
        {
          ...signerFields,
          'allowed-signers': optional(
            policyFile,
            "SSH keys of people, as git's `gpg.ssh.allowedSignersFile`.",
          ),
        },
        { expected: 'a mapping with `key`, with `issuer` and `subject`, or with `allowed-signers`' },
      ),
      'Whose signatures are verified.',
    ),
    'trusted-root': trustedRootField,
    npm: optional(registry, 'The registry of npm packages.', {
      fallback: 'what npm of this machine is configured for',
    }),
    pypi: optional(registry, 'The index of Python packages.', {
      fallback: 'what pip of this machine is configured for',
    }),
  },
  { expected: 'a mapping of rules about what is signed' },
);

type VerifyData = Infer<typeof verifySchema>;
type RulesData = Infer<typeof verifyRulesSchema>;

/** One set of rules, complete. */
export interface VerifyRules {
  readonly commit: boolean;
  readonly commit_signers: NamePatterns;
  readonly scripts: readonly string[];
  readonly script_signers: NamePatterns;
  readonly cover: readonly string[];
  readonly dependencies: DependencyLevel;
  readonly publishers: NamePatterns;
}

export type JobSigner = NamedSigner | { readonly name: string; readonly kind: 'ssh'; readonly file: string };

/** What verification goes by; names of files are those in the policy directory. */
export interface JobTrustData {
  readonly signers: readonly JobSigner[];
  readonly trustedRoot?: string;
  readonly npmKeys?: string;
}

/** Origins (`https://host`) by kind of lock file; empty: what this machine is configured for. */
export interface Registries {
  readonly npm: Readonly<Record<string, true>>;
  readonly pypi: Readonly<Record<string, true>>;
}

/** What counts where nothing is said: a job demands what it likes. */
export const DEFAULT_VERIFY_RULES: VerifyRules = {
  commit: false,
  commit_signers: ANY_NAME,
  scripts: [],
  script_signers: ANY_NAME,
  cover: [],
  dependencies: 'none',
  publishers: ANY_NAME,
};

/** `data` over `base`: each key that is there takes the place of the one below it. */
export function lowerVerifyRules(data: RulesData, base: VerifyRules, patterns: PatternReader): VerifyRules {
  const { commit, commitSigners, scripts, scriptSigners, cover, dependencies, publishers } = data;
  return {
    commit: commit === undefined ? base.commit : commit === 'required',
    commit_signers: commitSigners === undefined ? base.commit_signers : patterns(commitSigners),
    scripts: scripts ?? base.scripts,
    script_signers: scriptSigners === undefined ? base.script_signers : patterns(scriptSigners),
    cover: cover ?? base.cover,
    dependencies: dependencies ?? base.dependencies,
    publishers: publishers === undefined ? base.publishers : patterns(publishers),
  };
}

export function lowerRegistries(data: VerifyData): Registries {
  const origins = (urls: readonly string[] = []): Record<string, true> =>
    Object.fromEntries(urls.map((url) => [new URL(url).origin, true]));
  return { npm: origins(data.npm?.urls), pypi: origins(data.pypi?.urls) };
}

export function lowerJobTrust(data: VerifyData, wrong: WrongReporter): JobTrustData {
  const signers = lowerSigners(
    data,
    'a `key`, an `issuer` and a `subject`, or `allowed-signers`',
    (name, { allowedSigners, ...other }): JobSigner | undefined => {
      if (allowedSigners === undefined) return lowerSigner(name, other);
      const isAlone = Object.values(other).every((given) => given === undefined);
      return isAlone ? { name, kind: 'ssh', file: allowedSigners } : undefined;
    },
    wrong,
  );
  const { trustedRoot, npm } = data;
  return {
    signers,
    ...(trustedRoot === undefined ? {} : { trustedRoot }),
    ...(npm?.keys === undefined ? {} : { npmKeys: npm.keys }),
  };
}
