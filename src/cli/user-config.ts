/** The user's own configuration. It may name programs to run, so nothing of a project is ever read here. */
import { type Stats, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { type Problem, parseYaml, problemsError, readSource } from '../core/yaml-source.ts';
import { list, record } from '../job/schema/collections.ts';
import { object, optional, required } from '../job/schema/objects.ts';
import { text } from '../job/schema/scalars.ts';
import { type Infer, Locations } from '../job/schema/schema.ts';
import { SECRET_PATTERN } from '../protocol/secret-record.ts';

/** A hand-written file. */
const MAX_CONFIG_BYTES = 1024 * 1024;
const WRITABLE_BY_GROUP_OR_OTHERS = 0o022;

const configSchema = object(
  {
    secrets: optional(
      record(
        { name: '<NAME>', expected: 'the name of a secret', pattern: SECRET_PATTERN },
        object(
          {
            command: required(
              list(text({ expected: 'a string', pattern: '^[\\s\\S]+$' }), {
                min: 1,
                max: 1000,
                expected: 'a list: the program and its arguments',
              }),
              'Prints the secret.',
              { advice: 'write `command: [PROGRAM, ARGUMENT]`' },
            ),
          },
          { expected: 'a mapping with `command`' },
        ),
        { max: 1000, expected: 'a mapping of names of secrets to what supplies them' },
      ),
      'What supplies secrets that the command line does not.',
    ),
  },
  { expected: 'a mapping with `secrets`' },
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
  requireOwn(path, stats);
  const source = readSource(path, path, {
    maxBytes: MAX_CONFIG_BYTES,
    code: 'CONFIG_INVALID',
    missingCode: 'CONFIG_INVALID',
  });
  const { root, problems: syntax } = parseYaml(source, 'CONFIG_INVALID');
  const problems: Problem[] = [...syntax];
  if (problems.length === 0 && (root === undefined || (root.kind === 'scalar' && root.type === 'null')))
    return {};
  const config =
    root && problems.length === 0
      ? configSchema.parse(root, {
          locations: new Locations(),
          report: (problem) => problems.push({ ...problem, code: 'CONFIG_INVALID' }),
        })
      : undefined;
  if (config === undefined || problems.length > 0) throw problemsError(problems, 'CONFIG_INVALID');
  return config;
}

function requireOwn(path: string, stats: Stats): void {
  const uid = process.getuid?.();
  const foreign = stats.uid !== uid && stats.uid !== 0;
  if (!foreign && (stats.mode & WRITABLE_BY_GROUP_OR_OTHERS) === 0) return;
  throw new CtError(
    'CONFIG_INVALID',
    foreign
      ? `${path} belongs to user ${stats.uid}, not to you (${uid})`
      : `${path} can be written by other users`,
    {
      hint: foreign ? 'make it your own file' : `it names programs that run as you; run: chmod go-w ${path}`,
    },
  );
}
