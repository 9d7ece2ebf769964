/** The form of policy data (`data.yml`, version 1): its keys, their values, and what the docs say of them. data.ts prepares it for Rego. */
import { list, record } from '../job/schema/collections.ts';
import { object, optional, required } from '../job/schema/objects.ts';
import { duration, integer, oneOf, size, text } from '../job/schema/scalars.ts';
import type { Infer } from '../job/schema/schema.ts';
import { AUDIT_MODES } from '../protocol/audit.ts';
import { CODE_ORIGINS, CODE_POLICY_MODES } from '../protocol/code.ts';
import { MAX_INTERPRETER_NAME_BYTES, MAX_INTERPRETER_NAMES } from '../protocol/limits.ts';
import { MAX_NETWORK_ENTRY_BYTES, NETWORK_MODES } from '../protocol/network.ts';
import { DETECT_ACTIONS } from './detection.ts';
import { imageRulesSchema, imageSchema } from './image-rules.ts';
import { verifyRulesSchema, verifySchema } from './verify-rules.ts';

/** More do not fit into the nodes that the YAML reader takes. */
const MAX_RULES = 50_000;
const MAX_REPOSITORIES = 5000;
const MAX_GRANTS = 5000;
const MAX_PATTERNS = 5000;
const DAY_MS = 86_400_000;
/** With those that `ct.exec` knows, no more than a guest takes (MAX_INTERPRETERS). */
const MAX_OWN_INTERPRETERS = 12;

const anything = text({ expected: 'a string', pattern: '^[\\s\\S]+$', maxLength: MAX_NETWORK_ENTRY_BYTES });
const destinations = list(anything, { max: MAX_RULES, expected: 'a list of destinations and presets' });
const hosts = list(anything, { max: MAX_RULES, expected: 'a list of names, addresses and networks' });
const patterns = list(anything, {
  max: MAX_PATTERNS,
  expected: 'a list of names, or beginnings followed by `*`',
});
const mode = oneOf(...NETWORK_MODES);
const audit = oneOf(...AUDIT_MODES);
const trust = list(oneOf('local', 'trusted', 'untrusted'), {
  min: 1,
  max: 3,
  expected: 'a list of `local`, `trusted` and `untrusted`',
});

const codeMode = oneOf(...CODE_POLICY_MODES);
const origins = list(oneOf(...CODE_ORIGINS), { max: 2, expected: 'a list of `source` and `built`' });
const programs = list(
  text({
    expected: 'the name of a program, its path, or `*`',
    pattern: '^(\\*|/?[^\\s*]+)$',
    maxLength: 200,
  }),
  { max: MAX_PATTERNS, expected: 'a list of names and paths of interpreters' },
);
const interpreter = object(
  {
    path: required(
      text({ expected: 'an absolute path', pattern: '^/[^\\s]+$', maxLength: 200 }),
      'The program, in the image.',
    ),
    endings: optional(
      list(
        text({
          expected: 'the end of a name',
          pattern: '^[^\\s/-][^\\s/]*$',
          maxLength: MAX_INTERPRETER_NAME_BYTES,
        }),
        {
          max: MAX_INTERPRETER_NAMES,
          expected: 'a list of ends of names, such as `.py`',
        },
      ),
      'Files with names that end so are code, whenever it opens them.',
    ),
    options: optional(
      list(text({ expected: 'an option', pattern: '^-[^\\s]+$', maxLength: MAX_INTERPRETER_NAME_BYTES }), {
        max: MAX_INTERPRETER_NAMES,
        expected: 'a list of options, such as `-c`',
      }),
      'Options that are followed by code.',
    ),
    arguments: optional(oneOf('every', 'first'), 'Which of the files that its command line names are code.', {
      fallback: '`first`',
    }),
  },
  { expected: 'a mapping with `path`' },
);
const execFields = {
  mode: optional(codeMode, 'What happens to code that nobody vouches for.', { fallback: '`off`' }),
  trust: optional(origins, 'What is trusted besides the image and what is signed.', {
    fallback: '`[source, built]`',
  }),
  inline: optional(
    programs,
    'Interpreters that may not be started to read code from an option or standard input.',
  ),
};

const limitFields = {
  cpus: integer(1, 1024),
  memory: size(1, 64 * 1024 * 1024),
  disk: size(1, 1024 * 1024 * 1024),
  timeout: duration(1000, 30 * DAY_MS),
};
const limitDocs = {
  cpus: 'Most virtual CPUs of a job.',
  memory: 'Most memory of a job.',
  disk: 'Largest volume of a job.',
  timeout: 'Longest time that a job may ask for.',
};
const limits = object(
  {
    cpus: required(limitFields.cpus, limitDocs.cpus),
    memory: required(limitFields.memory, limitDocs.memory),
    disk: required(limitFields.disk, limitDocs.disk),
    timeout: required(limitFields.timeout, limitDocs.timeout),
  },
  { expected: 'a mapping with `cpus`, `memory`, `disk` and `timeout`' },
);
const someLimits = object(
  {
    cpus: optional(limitFields.cpus, limitDocs.cpus),
    memory: optional(limitFields.memory, limitDocs.memory),
    disk: optional(limitFields.disk, limitDocs.disk),
    timeout: optional(limitFields.timeout, limitDocs.timeout),
  },
  { expected: 'a mapping with some of `cpus`, `memory`, `disk` and `timeout`' },
);

const SECRET_KEY = {
  name: '<NAME>',
  expected: 'the name of a secret, or its beginning followed by `*`',
  pattern: '^([A-Za-z_][A-Za-z0-9_]{0,126}\\*?|\\*)$',
};
/** A pull request of a stranger gets no secret: there is no way to write it down. */
const secretTrust = list(oneOf('local', 'trusted'), {
  min: 1,
  max: 2,
  expected: 'a list of `local` and `trusted`',
});

const REPOSITORY_PATTERN = '^(\\*|[A-Za-z0-9._-]+/([A-Za-z0-9._-]+\\*?|\\*))$';
const repositoryName = text({
  expected: '`owner/name`, `owner/*`, `owner/beginning*` or `*`',
  pattern: REPOSITORY_PATTERN,
  maxLength: 200,
});
const repositoryNames = list(repositoryName, { max: MAX_PATTERNS, expected: 'a list of repositories' });

export const policyDataSchema = object(
  {
    version: required(integer(1, 1), 'Version of this format.', { advice: 'write `version: 1`' }),
    'opa-url': optional(
      text({
        expected: 'the URL of an OPA server',
        pattern: '^https?://[^\\s/?#@]+(/[^\\s?#@]*)?$',
        maxLength: 1000,
      }),
      'Decisions are asked of this OPA server in place of the built-in engine.',
    ),
    egress: required(
      object(
        {
          mode: required(mode, 'The least strict mode that a job can have.', {
            advice: 'write `mode: enforce`',
          }),
          allow: required(
            destinations,
            'What jobs may ask for: destinations, presets, or `*` for everything.',
            {
              advice: 'write `allow: []` if jobs may ask for nothing',
            },
          ),
          always: optional(destinations, 'What every job gets unasked.'),
          block: optional(hosts, 'Denied in every mode, also where a rule allows it.'),
          ban: optional(hosts, 'As `block`; whoever tries it is ended at once.'),
          private: optional(
            record(
              { name: '<host>', expected: 'a host', pattern: '^[\\s\\S]{1,300}$' },
              list(anything, { min: 1, max: 1000, expected: 'a list of networks' }),
              { max: MAX_RULES, expected: 'a mapping of hosts to lists of networks' },
            ),
            'Networks beyond the public internet in which the addresses of a host may lie.',
          ),
          resolve: optional(
            record({ name: '<host>', expected: 'a host', pattern: '^[\\s\\S]{1,300}$' }, anything, {
              max: MAX_RULES,
              expected: 'a mapping of names to addresses',
            }),
            'Addresses that names have on this host, whatever its resolver says; they may be private.',
          ),
        },
        { expected: 'a mapping with `mode` and `allow`' },
      ),
      'The network of jobs.',
      { advice: 'policies/default.yml shows what belongs here' },
    ),
    admission: required(
      object(
        {
          trust: required(trust, 'Whose jobs run.', { advice: 'write `trust: [local, trusted]`' }),
          repositories: required(repositoryNames, 'Repositories whose jobs run.', {
            advice: "write `repositories: ['*']` for all",
          }),
          refs: required(patterns, 'Refs whose jobs run.', { advice: "write `refs: ['*']` for all" }),
          actors: required(patterns, 'People whose jobs run.', { advice: "write `actors: ['*']` for all" }),
          images: required(patterns, 'Images that jobs may have: names, or digests.', {
            advice: "write `images: ['*']` for all",
          }),
        },
        { expected: 'a mapping with `trust`, `repositories`, `refs`, `actors` and `images`' },
      ),
      'Which jobs run.',
      { advice: 'policies/default.yml shows what belongs here' },
    ),
    limits: required(limits, 'What a job may have at most.', {
      advice: 'policies/default.yml shows what belongs here',
    }),
    secrets: optional(
      record(
        SECRET_KEY,
        object(
          {
            trust: required(secretTrust, 'Whose jobs get it.', { advice: 'write `trust: [local, trusted]`' }),
            repositories: required(repositoryNames, 'Repositories whose jobs get it.', {
              advice: "write `repositories: ['*']` for all",
            }),
            refs: required(patterns, 'Refs whose jobs get it.', { advice: "write `refs: ['*']` for all" }),
          },
          { expected: 'a mapping with `trust`, `repositories` and `refs`' },
        ),
        { max: MAX_GRANTS, expected: 'a mapping of names of secrets to who gets them' },
      ),
      'Who gets which secrets. One that is not here is given to nobody.',
    ),
    audit: optional(
      audit,
      'Whether the system calls of a run are on record; `required`: there is no run without.',
      { fallback: '`on`' },
    ),
    exec: optional(
      object(
        {
          ...execFields,
          interpreters: optional(
            list(interpreter, { max: MAX_OWN_INTERPRETERS, expected: 'a list of interpreters' }),
            'Programs that run the files they are given, besides those that are known; one with the same path replaces it.',
          ),
        },
        { expected: 'a mapping with `mode`' },
      ),
      'Which code may run; docs/signed-code.md explains it.',
    ),
    detect: optional(
      record(
        {
          name: '<rule>',
          expected: 'the name of a rule of `ct.detect`, without its package',
          pattern: '^[a-z][a-z0-9_]{0,60}$',
        },
        oneOf(...DETECT_ACTIONS),
        { max: MAX_PATTERNS, expected: 'a mapping of rules to `off`, `alert` or `terminate`' },
      ),
      'What follows from what a rule finds in the events of a run, in place of what it says itself.',
    ),
    image: optional(imageSchema, 'What an image must have to boot, and who signs images.'),
    verify: optional(verifySchema, 'What of a job has to be signed, and by whom.'),
    untrusted: optional(
      object(
        {
          image: optional(imageRulesSchema, 'Rules about images that have to be met, too.'),
          verify: optional(verifyRulesSchema, 'Rules about what is signed that have to be met, too.'),
          egress: required(
            object(
              {
                allow: required(
                  destinations,
                  'What they may ask for, of what `egress: allow` lets all jobs ask for.',
                ),
                mode: optional(mode, 'The least strict mode.', { fallback: 'that of `egress`' }),
              },
              { expected: 'a mapping with `allow`' },
            ),
            'Their network.',
          ),
          audit: optional(audit, 'Where it is stricter: whether their system calls are on record.'),
          exec: optional(
            object(execFields, { expected: 'a mapping with `mode`, `trust` or `inline`' }),
            'Where it is stricter: which code may run.',
          ),
          images: optional(patterns, 'Images that they may have, of those that all jobs may have.'),
          limits: optional(someLimits, 'What they may have at most, where that is less.'),
        },
        { expected: 'a mapping with `egress`' },
      ),
      'Narrows what jobs of strangers get. Required if `admission: trust` lets them run.',
    ),
    repositories: optional(
      record(
        {
          name: '<owner/name>',
          expected: '`owner/name`, `owner/*` or `owner/beginning*`',
          pattern: '^[A-Za-z0-9._-]+/([A-Za-z0-9._-]+\\*?|\\*)$',
        },
        object(
          {
            egress: optional(
              object(
                {
                  mode: optional(mode, 'In place of the general one.'),
                  allow: optional(destinations, 'In place of the general list.'),
                  always: optional(destinations, 'In place of the general list.'),
                },
                { expected: 'a mapping with `mode`, `allow` or `always`' },
              ),
              'The network of its jobs.',
            ),
            audit: optional(audit, 'In place of the general one.'),
            exec: optional(
              object(execFields, { expected: 'a mapping with `mode`, `trust` or `inline`' }),
              'Each in place of the general one.',
            ),
            verify: optional(verifyRulesSchema, 'Each in place of the general one.'),
            refs: optional(patterns, 'In place of those of `admission`.'),
            actors: optional(patterns, 'In place of those of `admission`.'),
            trust: optional(trust, 'In place of that of `admission`.'),
            images: optional(patterns, 'In place of those of `admission`.'),
            image: optional(imageRulesSchema, 'Each in place of the general one.'),
            limits: optional(someLimits, 'Each in place of the general one.'),
            secrets: optional(
              record(
                SECRET_KEY,
                object(
                  {
                    trust: required(secretTrust, 'Whose jobs get it.'),
                    refs: required(patterns, 'Refs whose jobs get it.'),
                  },
                  { expected: 'a mapping with `trust` and `refs`' },
                ),
                { max: MAX_GRANTS, expected: 'a mapping of names of secrets to who gets them' },
              ),
              'In addition to the general ones.',
            ),
          },
          { expected: 'a mapping of settings' },
        ),
        { max: MAX_REPOSITORIES, expected: 'a mapping of repositories to settings' },
      ),
      'Settings of single repositories. The longest pattern that fits is used, alone.',
    ),
  },
  { expected: 'a mapping with `version`, `egress`, `admission` and `limits`' },
);

/** As parsed: durations in milliseconds, sizes in MiB. */
export type Data = Infer<typeof policyDataSchema>;
