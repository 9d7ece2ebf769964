/**
 * What operators say about signatures of jobs (`verify:` of the policy data), checked and prepared for Rego: who signs, and what
 * has to be signed. Files that it names lie in the policy directory.
 */
import { list, record } from '../job/schema/collections.ts';
import { object, optional, required } from '../job/schema/objects.ts';
import { oneOf, text } from '../job/schema/scalars.ts';
import type { Infer } from '../job/schema/schema.ts';
import { DEPENDENCY_LEVELS, type DependencyLevel, MAX_MANIFESTS } from '../protocol/verify.ts';
import { compileIdentity } from '../verification/identity.ts';
import type { NamedSigner, NamePatterns } from './signers.ts';

/** As many as trust takes (src/verification/trust.ts). */
const MAX_SIGNERS = 1000;
const MAX_NAMES = 5000;
const MAX_REGISTRIES = 100;
/** PEM of a P-256 key has 180 characters. */
const MAX_PEM_LENGTH = 2000;

const word = text({ expected: 'a word', pattern: '^[\\x21-\\x7e]+$', maxLength: 2048 });
const file = text({
  expected: 'the name of a file in the policy directory',
  pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$',
});
const signerNames = list(word, {
  max: MAX_NAMES,
  expected: 'a list of names of `signers`, or beginnings followed by `*`',
});
const treePaths = list(
  text({
    expected: 'a path in the workspace',
    pattern: '^(?!/)(?!.*(^|/)\\.{0,2}(/|$))[^\\x00]+$',
    maxLength: 4095,
  }),
  { max: MAX_NAMES, expected: 'a list of paths in the workspace' },
);

const ruleFields = {
  commit: optional(oneOf('required', 'optional'), 'Whether the tree has to be that of a signed commit.', {
    fallback: '`optional`',
  }),
  'commit-signers': optional(signerNames, 'Those of `signers` who may sign commits.', { fallback: 'all' }),
  scripts: optional(
    list(
      text({
        expected: 'a path in the workspace',
        pattern: '^(?!/)(?!.*(^|/)\\.{0,2}(/|$))[^\\x00]+$',
        maxLength: 4095,
      }),
      { max: MAX_MANIFESTS, expected: 'a list of paths of signed manifests' },
    ),
    'Signed manifests that have to be there and to hold.',
    { fallback: 'none' },
  ),
  'script-signers': optional(signerNames, 'Those of `signers` who may sign manifests.', { fallback: 'all' }),
  cover: optional(treePaths, 'Files and directories that have to be in one of the accepted manifests.', {
    fallback: 'none',
  }),
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
    keys: optional(file, 'The keys that the registry signs with, as it publishes them (JSON).'),
  },
  { expected: 'a mapping with `urls` and `keys`' },
);

export const verifySchema = object(
  {
    ...ruleFields,
    signers: optional(
      record(
        { name: '<name>', expected: 'the name of a signer', pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$' },
        object(
          {
            key: optional(
              text({
                expected: 'a public key in PEM',
                pattern: '^-----BEGIN PUBLIC KEY-----\\n[\\s\\S]+\\n-----END PUBLIC KEY-----\\n?$',
                maxLength: MAX_PEM_LENGTH,
              }),
              'Public key, ECDSA P-256 or Ed25519.',
            ),
            issuer: optional(word, 'Who vouches for the identity; exact.'),
            subject: optional(word, 'The identity; exact, or with `*` for one name.'),
            'allowed-signers': optional(file, "SSH keys of people, as git's `gpg.ssh.allowedSignersFile`."),
          },
          { expected: 'a mapping with `key`, with `issuer` and `subject`, or with `allowed-signers`' },
        ),
        { max: MAX_SIGNERS, expected: 'a mapping of names to signers' },
      ),
      'Whose signatures are verified.',
    ),
    'trusted-root': optional(file, 'The `trusted_root.json` that identities are verified with.'),
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

const ANYBODY: NamePatterns = { any: true, exact: {}, prefixes: [] };

/** What counts where nothing is said: a job demands what it likes. */
export const DEFAULT_VERIFY_RULES: VerifyRules = {
  commit: false,
  commit_signers: ANYBODY,
  scripts: [],
  script_signers: ANYBODY,
  cover: [],
  dependencies: 'none',
  publishers: ANYBODY,
};

/** `data` over `base`: each key that is there takes the place of the one below it. */
export function lowerVerifyRules(
  data: RulesData,
  base: VerifyRules,
  patterns: (entries: readonly string[]) => NamePatterns,
): VerifyRules {
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

export function lowerJobTrust(
  data: VerifyData,
  wrong: (container: object, key: string, message: string, hint?: string) => void,
): JobTrustData {
  const signers: JobSigner[] = [];
  for (const [name, signer] of Object.entries(data.signers ?? {})) {
    const { key, issuer, subject, allowedSigners } = signer;
    const kinds = [key, issuer ?? subject, allowedSigners].filter((given) => given !== undefined).length;
    if (kinds !== 1 || (issuer === undefined) !== (subject === undefined)) {
      wrong(
        data.signers ?? {},
        name,
        'a signer has either a `key`, an `issuer` and a `subject`, or `allowed-signers`',
      );
    } else if (key !== undefined) signers.push({ name, kind: 'key', pem: key });
    else if (allowedSigners !== undefined) signers.push({ name, kind: 'ssh', file: allowedSigners });
    else if (issuer !== undefined && subject !== undefined) {
      const identity = { issuer, subject: subject.includes('*') ? { pattern: subject } : subject };
      try {
        compileIdentity(identity);
        signers.push({ name, kind: 'identity', ...identity });
      } catch (error) {
        wrong(data.signers ?? {}, name, error instanceof Error ? error.message : String(error));
      }
    }
  }
  const { trustedRoot, npm } = data;
  if (trustedRoot === undefined && signers.some(({ kind }) => kind === 'identity')) {
    wrong(
      data,
      'signers',
      'identities are accepted, but there is no `trusted-root` to verify them with',
      'put the trusted_root.json of the Sigstore into the policy directory, and name it',
    );
  }
  return {
    signers,
    ...(trustedRoot === undefined ? {} : { trustedRoot }),
    ...(npm?.keys === undefined ? {} : { npmKeys: npm.keys }),
  };
}
