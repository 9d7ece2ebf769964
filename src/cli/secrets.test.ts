import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { inspect } from 'node:util';
import { CtError } from '../core/errors.ts';
import { SourceText } from '../core/source-text.ts';
import { loadSources } from '../job/load.ts';
import { type Plan, planCommand, planJobs } from '../job/plan.ts';
import { MAX_SECRET_BYTES } from '../protocol/limits.ts';
import type { SecretOptions } from './run-options.ts';
import { type ResolvedSecrets, resolveSecrets } from './secrets.ts';
import { parseSecretsFile } from './secrets-file.ts';

let directory = '';
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'ct-secrets-'));
});
after(() => rmSync(directory, { recursive: true, force: true }));

const NONE: SecretOptions = { names: [], files: {}, from: [] };

function planOf(text: string): Plan {
  return planJobs(loadSources('/p', [new SourceText('ct.yml', `version: 1\n${text}`)]), { targets: [] });
}

const PLAN = planOf(`jobs:
  build: {steps: [{run: x}]}
  deploy:
    matrix: {to: [a, b]}
    secrets: [TOKEN]
    steps:
      - {run: x, secrets: {KEY: file}}
`);

async function resolved(
  options: Partial<SecretOptions>,
  env: Record<string, string> = {},
  plan = PLAN,
): Promise<ResolvedSecrets> {
  return await resolveSecrets(
    plan,
    { ...NONE, ...options },
    { XDG_CONFIG_HOME: join(directory, 'none'), ...env },
  );
}

async function failure(action: Promise<unknown>): Promise<CtError> {
  try {
    await action;
  } catch (error) {
    assert.ok(error instanceof CtError, String(error));
    return error;
  }
  assert.fail('nothing was thrown');
}

function file(name: string, content: string | Buffer, mode = 0o600): string {
  const path = join(directory, name);
  mkdirSync(join(path, '..'), { recursive: true });
  writeFileSync(path, content, { mode });
  return path;
}

/** Returns the variable that makes it the configuration. */
function config(name: string, content: string, mode = 0o600): Record<string, string> {
  const path = file(`config-${name}/ct/config.yml`, content, mode);
  chmodSync(path, mode);
  return { XDG_CONFIG_HOME: join(directory, `config-${name}`), PATH: process.env['PATH'] ?? '' };
}

function valuesOf(secrets: ResolvedSecrets, plan = PLAN): Record<string, string>[] {
  return plan.jobs.map((job) => {
    const values = secrets.for(job);
    return Object.fromEntries((values?.names() ?? []).map((name) => [name, `${values?.get(name)}`]));
  });
}

test('every job gets the secrets it names and no others, from each kind of source', async () => {
  const from = file('several', 'KEY=from-several\nOTHER=unused-one\n');
  const secrets = await resolved({ names: ['TOKEN'], from: [from] }, { TOKEN: 'from-env', KEY: 'not this' });
  const both = { TOKEN: 'from-env', KEY: 'from-several' };
  assert.deepEqual(valuesOf(secrets), [{}, both, both]);
  assert.ok(!inspect(secrets, { depth: 9, showHidden: true }).includes('from-env'));

  const key = file('key', 'from-file\n');
  const other = await resolved(
    { files: { KEY: key } },
    config(
      'all',
      'secrets:\n  TOKEN: {command: [sh, -c, "printf %s-%s $0 $PWD_LIKE; echo", "from-command"]}\n',
    ),
  );
  assert.deepEqual(valuesOf(other)[1], { TOKEN: 'from-command-\n', KEY: 'from-file\n' });
});

test('a token that was made for the run is revoked when it has ended, once, with the token on stdin', async () => {
  const seen = join(directory, 'revoked');
  const env = config(
    'brokered',
    `secrets:\n  TOKEN: {command: [echo, issued-token], revoke: [sh, -c, 'cat >> "$0"; echo . >> "$0"', ${seen}]}\n`,
  );
  const plan = planCommand({ argv: ['x'], secrets: ['TOKEN'] });
  const secrets = await resolved({}, env, plan);
  assert.deepEqual(valuesOf(secrets, plan), [{ TOKEN: 'issued-token\n' }]);
  assert.ok(!existsSync(seen));
  assert.deepEqual(await secrets.revoke(), []);
  assert.deepEqual(await secrets.revoke(), []);
  assert.equal(readFileSync(seen, 'utf8'), 'issued-token.\n');
});

test('a token is revoked also when another secret has no source', async () => {
  const seen = join(directory, 'revoked-at-once');
  const env = config('half', `secrets:\n  TOKEN: {command: [echo, issued], revoke: [tee, ${seen}]}\n`);
  await assert.rejects(resolved({}, env), { code: 'SECRET_MISSING' });
  assert.equal(readFileSync(seen, 'utf8'), 'issued');
});

test('a token that could not be revoked is named', async () => {
  const env = config(
    'stubborn',
    'secrets: {TOKEN: {command: [echo, issued], revoke: [sh, -c, "echo no broker >&2; exit 4"]}}',
  );
  const secrets = await resolved({}, env, planCommand({ argv: ['x'], secrets: ['TOKEN'] }));
  const [sentence = ''] = await secrets.revoke();
  assert.match(sentence, /`TOKEN` was not revoked and may still be valid: .*no broker/s);
  assert.ok(!sentence.includes('issued'));
});

test('the command form is given what -s and --secret-file name', async () => {
  const plan = planCommand({ argv: ['x'], secrets: ['TOKEN'] });
  const secrets = await resolved({ names: ['TOKEN'] }, { TOKEN: 'value' }, plan);
  assert.deepEqual(valuesOf(secrets, plan), [{ TOKEN: 'value' }]);
  assert.throws(() => planCommand({ argv: ['x'], env: { T: '1' }, secrets: ['T'] }), { code: 'USAGE' });
});

test('a pipe is as good as a file', async () => {
  const path = join(directory, 'pipe');
  execFileSync('mkfifo', [path]);
  const plan = planCommand({ argv: ['x'], secrets: ['TOKEN'] });
  const [secrets] = await Promise.all([
    resolved({ files: { TOKEN: path } }, {}, plan),
    import('node:fs/promises').then(({ writeFile }) => writeFile(path, 'through a pipe')),
  ]);
  assert.deepEqual(valuesOf(secrets, plan), [{ TOKEN: 'through a pipe' }]);
});

test('SECRET_MISSING names job, line and the ways to give one, all at once', async () => {
  const error = await failure(resolved({}));
  assert.equal(error.code, 'SECRET_MISSING');
  assert.match(error.message, /ct\.yml:6:15: job `deploy \(to=a\)` names the secret `TOKEN`/);
  assert.match(error.message, /ct\.yml:8:28: job `deploy \(to=a\)` names the secret `KEY`/);
  assert.doesNotMatch(error.message, /to=b/);
  for (const way of ['-s TOKEN', '--secret-file TOKEN=PATH', '--secrets-from FILE', 'none/ct/config.yml']) {
    assert.ok(error.message.includes(way), way);
  }
  const unset = await failure(resolved({ names: ['TOKEN'], files: { KEY: file('k', 'a value') } }));
  assert.match(unset.message, /-s TOKEN: this environment has no variable TOKEN/);
  const command = planCommand({ argv: ['x'], secrets: ['TOKEN'] });
  assert.match((await failure(resolved({ names: ['TOKEN'] }, {}, command))).message, /no variable TOKEN/);
});

test('a secret that is given and that no job names is USAGE', async () => {
  const error = await failure(resolved({ names: ['TOKEM'] }, { TOKEM: 'xxxx' }));
  assert.equal(error.code, 'USAGE');
  assert.match(error.message, /`TOKEM`; they name TOKEN, KEY/);
});

test('sources that fail say which secret and why, and nothing of any value', async () => {
  const cases: [() => Promise<unknown>, string, RegExp][] = [
    [
      () => resolved({ files: { KEY: '/does/not/exist' } }),
      'SECRET_SOURCE_FAILED',
      /`KEY`.*\/does\/not\/exist/,
    ],
    [() => resolved({ files: { KEY: directory } }), 'SECRET_SOURCE_FAILED', /`KEY`/],
    [
      () => resolved({ files: { KEY: file('long', 'hunter22'.repeat(MAX_SECRET_BYTES / 4)) } }),
      'SECRET_SOURCE_FAILED',
      /longer than/,
    ],
    [() => resolved({ files: { KEY: file('short', 'ab\n') } }, {}), 'SECRET_MISSING', /TOKEN/],
    [
      () => resolved({ from: [file('latin', Buffer.from('KEY=\xfc', 'latin1'))] }),
      'SECRET_SOURCE_FAILED',
      /UTF-8/,
    ],
    [() => resolved({ from: [file('bad', 'KEY="hunter22\n')] }), 'SECRET_SOURCE_FAILED', /bad:1: the quotes/],
    [
      () => resolved({ names: ['TOKEN'], files: { KEY: file('nul', 'hunter22\0') } }, { TOKEN: 'tttt' }),
      'SECRET_UNUSABLE',
      /`KEY` has a NUL/,
    ],
    [
      () => resolved({ names: ['TOKEN'], files: { KEY: file('ok', 'okay') } }, { TOKEN: 'x7' }),
      'SECRET_UNUSABLE',
      /`TOKEN` has fewer than 4/,
    ],
    [
      () =>
        resolved(
          { files: { KEY: file('ok', 'okay') } },
          config('fails', 'secrets: {TOKEN: {command: [sh, -c, "echo hunter22; echo no key >&2; exit 3"]}}'),
        ),
      'SECRET_SOURCE_FAILED',
      /`TOKEN`.*exited with 3[\s\S]*no key/,
    ],
    [
      () =>
        resolved(
          { files: { KEY: file('ok', 'okay') } },
          config('absent', 'secrets: {TOKEN: {command: [no-such-program]}}'),
        ),
      'SECRET_SOURCE_FAILED',
      /`TOKEN`.*no-such-program/,
    ],
  ];
  for (const [action, code, message] of cases) {
    const error = await failure(action());
    const text = `${error.message} ${error.hint ?? ''}`;
    assert.equal(error.code, code, text);
    assert.match(text, message);
    assert.ok(!error.message.includes('hunter22'), text);
  }
});

test('CONFIG_INVALID: a configuration that others can write to, or that is not one', async () => {
  const cases: [Record<string, string>, RegExp][] = [
    [config('open', 'secrets: {}', 0o666), /can be written by other users[\s\S]*chmod go-w/],
    [config('shell', 'secrets: {TOKEN: {command: pass show x}}'), /1:28: expected a list/],
    [config('key', 'secretz: {}'), /unknown key `secretz`[\s\S]*did you mean `secrets`/],
    [config('yaml', 'a: ['), /config\.yml:1/],
  ];
  for (const [env, message] of cases) {
    const error = await failure(resolved({}, env));
    assert.equal(error.code, 'CONFIG_INVALID', error.message);
    assert.match(`${error.message} ${error.hint ?? ''}`, message);
  }
  assert.equal((await failure(resolved({}, config('empty', '# nothing\n')))).code, 'SECRET_MISSING');
});

test('a file of several secrets: quotes, escapes, lines, comments', () => {
  const text = [
    '# comment',
    '',
    'A=plain#not-a-comment=x',
    '  export B="two\\nlines \\"q\\" \\$x \\\\" # comment',
    "C='as it is \\n",
    "second line'",
    'D=\r',
    'E="x"',
  ].join('\n');
  assert.deepEqual(Object.fromEntries(parseSecretsFile(text, 'f')), {
    A: 'plain#not-a-comment=x',
    B: 'two\nlines "q" $x \\',
    C: 'as it is \\n\nsecond line',
    D: '',
    E: 'x',
  });
});

test('a file of several secrets: errors have the line and show nothing of it', () => {
  const cases: [string, RegExp][] = [
    ['A=1\nhunter22', /f:2: expected NAME=VALUE/],
    ['1A=hunter22', /f:1: expected/],
    ['CT_X=hunter22', /f:1: expected/],
    ['A=x\nA=hunter22', /f:2: `A` is given twice/],
    ['A=hunter22 b', /f:1: .*quoted/],
    ['A=hunter22"', /f:1: .*quoted/],
    ['A="hunter22', /f:1: the quotes are not closed/],
    ['A="x" hunter22', /f:1: something follows/],
    ['A="hunter22\\q"', /f:1: unknown escape/],
  ];
  for (const [text, message] of cases) {
    assert.throws(
      () => parseSecretsFile(text, 'f'),
      (error: CtError) =>
        error.code === 'SECRET_SOURCE_FAILED' &&
        message.test(error.message) &&
        !error.message.includes('hunter22'),
      text,
    );
  }
});
