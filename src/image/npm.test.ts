import assert from 'node:assert/strict';
import { test } from 'node:test';
import { npmEnvironment, npmPlan, parsePrograms } from './npm.ts';

test('the programs of a package are those of its package.json', () => {
  assert.deepEqual([...parsePrograms('{}', 'tool')], []);
  assert.deepEqual([...parsePrograms('{"bin": "./bin/run.js"}', '@scope/tool')], [['tool', 'bin/run.js']]);
  assert.deepEqual(
    [...parsePrograms('{"bin": {"npm": "bin/npm-cli.js", "npx": "bin/npx-cli.js"}}', 'npm')],
    [
      ['npm', 'bin/npm-cli.js'],
      ['npx', 'bin/npx-cli.js'],
    ],
  );
});

test('a package.json whose programs would leave the package, or be options or lines, is refused', () => {
  const hostile = [
    'no JSON',
    '{"bin": 1}',
    '{"bin": ["a"]}',
    '{"bin": "../../../etc/passwd"}',
    '{"bin": "/bin/sh"}',
    '{"bin": {"../sh": "a"}}',
    '{"bin": {"-rf": "a"}}',
    '{"bin": {"a": "b c"}}',
    '{"bin": {"a": "b\\narchive x y"}}',
    '{"bin": {"a": "x/../../b"}}',
    '{"bin": {"a": null}}',
  ];
  for (const text of hostile) {
    assert.throws(() => parsePrograms(text, 'tool'), { code: 'IMAGE_BUILD_FAILED' }, text);
  }
});

test('npm gets its own configuration, proxies and certificates, and nothing else of the environment', () => {
  assert.deepEqual(
    npmEnvironment({
      PATH: '/bin',
      HOME: '/root',
      npm_config_registry: 'r',
      NPM_CONFIG_CAFILE: 'c',
      https_proxy: 'p',
      TOKEN: 't',
    }),
    { PATH: '/bin', HOME: '/root', npm_config_registry: 'r', NPM_CONFIG_CAFILE: 'c', https_proxy: 'p' },
  );
});

test('the plan has an archive before its programs', () => {
  const archive = {
    name: 'npm',
    version: '1.0.0',
    integrity: '',
    path: '/x/abc.tgz',
    programs: new Map([['npx', 'bin/x.js']]),
  };
  assert.equal(
    npmPlan([archive], () => 'abc.tgz'),
    'archive abc.tgz npm\nprogram npx npm bin/x.js\n',
  );
});
