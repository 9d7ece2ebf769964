/** The user's own configuration. It may name programs to run, so nothing of a project is ever read here. */
import { statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { requireUnchangeable } from '../core/paths.ts';
import { readSource } from '../core/source-text.ts';
import { list, record } from '../job/schema/collections.ts';
import { parseConfig } from '../job/schema/config-file.ts';
import { object, optional, required } from '../job/schema/objects.ts';
import { duration, oneOf, text } from '../job/schema/scalars.ts';
import type { Infer } from '../job/schema/schema.ts';
import { SECRET_PATTERN } from '../protocol/secret-record.ts';

/** A hand-written file. */
const MAX_CONFIG_BYTES = 1024 * 1024;

const anyText = text({ expected: 'a string', pattern: '^[\\s\\S]+$' });
const command = list(anyText, { min: 1, max: 1000, expected: 'a list: the program and its arguments' });

const configSchema = object(
  {
    secrets: optional(
      record(
        { name: '<NAME>', expected: 'the name of a secret', pattern: SECRET_PATTERN },
        object(
          {
            command: required(command, 'Prints the secret.', {
              advice: 'write `command: [PROGRAM, ARGUMENT]`',
            }),
            revoke: optional(
              command,
              'Ends the life of what `command` has printed, which it reads from its stdin, when the run has ended.',
            ),
          },
          { expected: 'a mapping with `command`, and `revoke` if there is one' },
        ),
        { max: 1000, expected: 'a mapping of names of secrets to what supplies them' },
      ),
      'What supplies secrets that the command line does not.',
    ),
    signing: optional(
      record(
        {
          name: '<name>',
          expected: 'a name of letters, digits and `-`',
          pattern: '^[A-Za-z][A-Za-z0-9-]{0,62}$',
        },
        object(
          {
            command: required(command, 'Signs what it reads.', {
              advice: 'write `command: [PROGRAM, ARGUMENT]`',
            }),
            'public-key': required(anyText, 'File with the public key (PEM); relative to this file.', {
              advice: 'write `public-key: FILE`',
            }),
            input: optional(oneOf('digest', 'message'), 'What it reads.', { fallback: '`digest`' }),
            output: optional(oneOf('raw', 'base64'), 'How it writes the signature.', { fallback: '`raw`' }),
            env: optional(
              record(
                { name: '<NAME>', expected: 'a variable name', pattern: '^[A-Za-z_][A-Za-z0-9_]*$' },
                anyText,
                {
                  max: 100,
                  expected: 'a mapping of variables to values',
                },
              ),
              'What it gets of an environment, beside PATH and HOME.',
            ),
            timeout: optional(duration(1000, 600_000), 'How long it may take.', { fallback: '`1m`' }),
          },
          { expected: 'a mapping with `command` and `public-key`' },
        ),
        { max: 100, expected: 'a mapping of names to signing commands' },
      ),
      'Programs that sign with a key which they keep: `--key-command NAME`.',
    ),
  },
  { expected: 'a mapping with `secrets` and `signing`' },
);

export interface UserConfig extends Infer<typeof configSchema> {}

export function userConfigPath(env: Readonly<Record<string, string | undefined>>): string {
  const base = env['XDG_CONFIG_HOME'];
  return join(base?.startsWith('/') ? base : join(homedir(), '.config'), 'ct/config.yml');
}

/** Empty if there is none. Throws CONFIG_INVALID. */
export function readUserConfig(path: string): UserConfig {
  const stats = statSync(path, { throwIfNoEntry: false });
  if (!stats) return {};
  requireUnchangeable(path, stats, {
    writable: `it names programs that run as you; run: chmod go-w ${path}`,
  });
  const source = readSource(path, path, {
    maxBytes: MAX_CONFIG_BYTES,
    code: 'CONFIG_INVALID',
    missingCode: 'CONFIG_INVALID',
  });
  return parseConfig(configSchema, source) ?? {};
}
