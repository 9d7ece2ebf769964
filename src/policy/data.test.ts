import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { SourceText } from '../core/source-text.ts';
import { type PolicyData, parsePolicyData } from './data.ts';

const LIMITS = 'limits: {cpus: 4, memory: 8G, disk: 20G, timeout: 1h}\n';
const ADMISSION =
  "admission: {trust: [local], repositories: ['*'], refs: ['*'], actors: ['*'], images: ['*']}\n";
const EGRESS = 'egress: {mode: enforce, allow: []}\n';

function parse(text: string): PolicyData {
  return parsePolicyData(new SourceText('data.yml', text), {
    resolvePreset: (name) => [
      { rule: name, host: `${name}.example.org`, port: 443, protocol: 'tls', addresses: 'any' },
    ],
  });
}

/** With the egress section given and all else as small as may be. */
function withEgress(egress: string): PolicyData {
  return parse(`version: 1\negress:\n  mode: enforce\n  allow: []\n${egress}\n${ADMISSION}${LIMITS}`);
}

/** First lines of the problems: position and message. */
function problems(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof CtError && error.code === 'POLICY_INVALID', String(error));
    return error.message;
  }
  assert.fail('it was accepted');
}

test('what is missing is a problem, never "nothing forbidden"', () => {
  assert.match(
    problems(() => parse('')),
    /^data\.yml:1:1: the file is empty/,
  );
  for (const key of ['version', 'egress', 'admission', 'limits']) {
    const parts = { version: 'version: 1\n', egress: EGRESS, admission: ADMISSION, limits: LIMITS };
    const text = Object.entries(parts)
      .filter(([name]) => name !== key)
      .map(([, part]) => part)
      .join('');
    assert.match(
      problems(() => parse(text)),
      new RegExp(`the key \`${key}\` is missing`),
      key,
    );
  }
  for (const key of ['trust', 'repositories', 'refs', 'actors', 'images']) {
    const text = `version: 1\n${EGRESS}${ADMISSION.replace(new RegExp(`${key}: \\[[^\\]]*\\],? ?`), '')}${LIMITS}`;
    assert.match(
      problems(() => parse(text)),
      new RegExp(`the key \`${key}\` is missing`),
      key,
    );
  }
  assert.match(
    problems(() => parse(`version: 2\n${EGRESS}${ADMISSION}${LIMITS}`)),
    /data\.yml:1:10: expected the number `1`/,
  );
});

test('the smallest data allows nothing of what it does not name', () => {
  const { config, resolve } = parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}`);
  assert.deepEqual(
    [config.secrets, config.general.always, config.untrusted, resolve.size],
    [[], [], undefined, 0],
  );
  assert.deepEqual(JSON.parse(JSON.stringify(config.ceilings['general'])), {
    exact: {},
    below: {},
    any: [],
    presets: {},
  });
});

test('problems are told with line, column and what to write', () => {
  const wrong: [string, RegExp][] = [
    ['  always: [nmp]', /data\.yml:5:12: there is no preset `nmp`[\s\S]*did you mean `npm`\?/],
    ['  always: [example.com:80]', /data\.yml:5:12: `example\.com:80` does not say which protocol/],
    ['  block: [10.0.0.1/8]', /data\.yml:5:11: `10\.0\.0\.1\/8` has bits set[\s\S]*`10\.0\.0\.0\/8`/],
    ['  block: [https://example.com]', /data\.yml:5:11: `https:\/\/example\.com` is not the name/],
    ['  ban: ["exa*mple.com"]', /data\.yml:5:9: .*`\*` where none can be/],
    ['  private: {example.com: [intranet]}', /data\.yml:5:27: `intranet` is no network/],
    ['  private: {"a b": [10.0.0.0/8]}', /data\.yml:5:13: `a b` is not the name/],
    ['  resolve: {example.com: example.net}', /data\.yml:5:13: `example\.net` is no address/],
    ['  resolve: {"*.example.com": 10.0.0.1}', /data\.yml:5:13: `\*\.example\.com` is not one name/],
    ["  block: '*'", /data\.yml:5:10: expected a list [\s\S]*write `\['\*'\]`/],
    ['  block: paste.example', /data\.yml:5:10: expected a list [\s\S]*write `\[paste\.example\]`/],
    ['  blok: []', /data\.yml:5:3: unknown key `blok`[\s\S]*did you mean `block`\?/],
  ];
  for (const [line, expected] of wrong)
    assert.match(
      problems(() => withEgress(line)),
      expected,
      line,
    );
});

test('a pattern of repositories cannot reach into other owners, and other patterns end with their star', () => {
  const admission = (change: string): string =>
    `version: 1\n${EGRESS}${ADMISSION.replace("['*'], refs", `${change}, refs`)}${LIMITS}`;
  assert.match(
    problems(() => parse(admission("['acme*']"))),
    /owner\/beginning\*/,
  );
  assert.match(
    problems(() => parse(admission("['*/site']"))),
    /owner\/beginning\*/,
  );
  const { repositories } = parse(admission("['Acme/*', acme/one]")).config;
  assert.deepEqual(
    [repositories.any, Object.keys(repositories.exact), repositories.prefixes],
    [false, ['acme/one'], ['acme/']],
  );
  const refs = `version: 1\n${EGRESS}${ADMISSION.replace("refs: ['*']", "refs: ['refs/*/main']")}${LIMITS}`;
  assert.match(
    problems(() => parse(refs)),
    /before its end/,
  );
});

test('strangers run only where something says what they get, and no secret can be written down for them', () => {
  const trusting = ADMISSION.replace('[local]', '[local, untrusted]');
  assert.match(
    problems(() => parse(`version: 1\n${EGRESS}${trusting}${LIMITS}`)),
    /nothing says what they get/,
  );
  const repository = 'repositories: {acme/site: {trust: [untrusted]}}\n';
  assert.match(
    problems(() => parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}${repository}`)),
    /nothing says what they get/,
  );
  const { config } = parse(
    `version: 1\n${EGRESS}${trusting}${LIMITS}untrusted: {egress: {allow: [npm]}, limits: {cpus: 1}}\n`,
  );
  assert.equal(config.untrusted?.limits.cpus, 1);
  assert.equal(config.untrusted?.limits.memory_mib, 8192);
  const secrets = "secrets: {TOKEN: {trust: [untrusted], repositories: ['*'], refs: ['*']}}\n";
  assert.match(
    problems(() => parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}${secrets}`)),
    /expected `local` or `trusted`/,
  );
});

test('hosts are filed by what they are looked up by', () => {
  const { config, resolve } = withEgress(`  always: [npm, https://Example.com]
  block: [Bad.Example, '*.bad.example', 192.0.2.7, 10.0.0.0/8, 10.1.0.0/16, 12.0.0.0/6, '2001:db8::/32', '2001::/16', 'fd00::/8', '::/64', '::ffff:10.0.0.1']
  private: {'*': [10.0.0.0/8], intranet.example: [127.0.0.1]}
  resolve: {Registry.Example: '::ffff:10.1.2.3'}`);
  const { block } = config.egress;
  assert.deepEqual(Object.keys(block.exact), ['bad.example', '192.0.2.7', '::ffff:10.0.0.1']);
  assert.deepEqual(Object.keys(block.below), ['bad.example']);
  assert.deepEqual(
    { ...block.networks },
    {
      '10': ['10.0.0.0/8'],
      '10.1': ['10.1.0.0/16'],
      '*': ['12.0.0.0/6', 'fd00::/8'],
      '2001:db8': ['2001:db8::/32'],
      '2001': ['2001::/16'],
      '0:0': ['::/64'],
    },
  );
  assert.deepEqual(
    config.general.always.map((one) => `${one.rule} ${one.host} ${one.addresses}`),
    ['npm npm.example.org any', 'https://Example.com example.com public'],
  );
  assert.deepEqual(config.egress.private.any.networks, ['10.0.0.0/8']);
  assert.deepEqual({ ...config.egress.private.exact['intranet.example']?.addresses }, { '127.0.0.1': true });
  assert.deepEqual([...resolve], [['registry.example', '10.1.2.3']]);
});

test('settings of a repository are completed by the general ones, and share their lists', () => {
  const { config } = parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}repositories:
  Acme/Site: {limits: {cpus: 8}, egress: {allow: ['*']}}
  acme/*: {egress: {mode: terminate}}
`);
  const site = config.profiles.exact['acme/site'];
  assert.deepEqual(
    [site?.limits.cpus, site?.limits.memory_mib, site?.mode, site?.ceiling],
    [8, 8192, 'enforce', 'repository acme/site'],
  );
  const rest = config.profiles.prefixes['acme/'];
  assert.deepEqual([rest?.mode, rest?.ceiling, rest?.limits.cpus], ['terminate', 'general', 4]);
  assert.deepEqual(
    [site?.keys.limits, site?.keys.refs, rest?.keys.limits],
    ['repositories: acme/site: limits', 'admission: refs', 'limits'],
  );
});

test('runs are on record unless it is said that they are not', () => {
  const { config } = parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}repositories:
  acme/site: {audit: required}
`);
  assert.equal(config.general.audit, 'on');
  assert.equal(config.profiles.exact['acme/site']?.audit, 'required');
  const off = parse(`version: 1\naudit: off\n${EGRESS}${ADMISSION}${LIMITS}untrusted:
  egress: {allow: []}
  audit: required
`).config;
  assert.deepEqual([off.general.audit, off.untrusted?.audit], ['off', 'required']);
});

test('JSON is read as well', () => {
  const { config } = parse(
    JSON.stringify({
      version: 1,
      egress: { mode: 'audit', allow: ['npm'] },
      admission: { trust: ['local'], repositories: ['*'], refs: ['*'], actors: ['*'], images: ['*'] },
      limits: { cpus: 1, memory: '1G', disk: '1G', timeout: '1h' },
    }),
  );
  assert.equal(config.general.mode, 'audit');
});

const PEM = '      -----BEGIN PUBLIC KEY-----\n      MFkw\n      -----END PUBLIC KEY-----\n';

/** With `image:` as given, and all else as small as may be. */
function withImage(image: string, more = ''): PolicyData {
  return parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}image:\n${image}\n${more}`);
}

test('without a word about images, those of this machine run, and others need a signer whom nobody has named', () => {
  const { config, imageTrust } = parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}`);
  assert.equal(config.general.image.local, true);
  assert.deepEqual(imageTrust.signers, []);
  assert.deepEqual({ ...config.image.revoked }, {});
  assert.equal(config.image.running, 'finish');
});

test('rules about images of a repository take the place of the general ones, key by key', () => {
  const { config } = withImage(
    '  local: deny\n  max-age: 30d\n  minimum: {ci: 2027-01-31}\n  scan: {fail-on: medium}',
    'repositories: {acme/site: {image: {max-age: 1d, base: [debian-12]}}}',
  );
  const { general, profiles } = config;
  assert.equal(general.image.max_age_seconds, 30 * 86_400);
  assert.deepEqual(general.image.minimum, { ci: Date.UTC(2027, 0, 31) / 1000 });
  assert.deepEqual(general.image.scan, {
    max_age_seconds: 14 * 86_400,
    failing: ['critical', 'high', 'medium', 'unknown'],
  });
  const own = profiles.exact['acme/site']?.image;
  assert.equal(own?.max_age_seconds, 86_400);
  assert.equal(own?.local, false);
  assert.deepEqual(own?.scan, general.image.scan);
  assert.deepEqual({ ...own?.base.exact }, { 'debian-12': true });
});

test('signers of images are keys or identities, and what is neither is a problem at its place', () => {
  const identity = '{issuer: https://issuer.example, subject: https://host.example/a/*}';
  const { imageTrust } = withImage(
    `  trusted-root: root.json\n  signers:\n    one:\n      key: |\n  ${PEM.replaceAll('\n', '\n  ').trimEnd()}\n    two: ${identity}`,
  );
  assert.deepEqual(
    imageTrust.signers.map(({ name, kind }) => [name, kind]),
    [
      ['one', 'key'],
      ['two', 'identity'],
    ],
  );
  const wrong: [string, RegExp][] = [
    [`  signers: {two: ${identity}}`, /no `trusted-root` to verify them with/],
    ['  signers: {two: {issuer: https://issuer.example}}', /either a `key`, or an `issuer` and a `subject`/],
    [
      '  trusted-root: root.json\n  signers: {two: {issuer: https://issuer.example, subject: https://*.example/a}}',
      /needs a `\*` behind a literal host/,
    ],
    ['  trusted-root: ../root.json', /the name of a file in the policy directory/],
    ['  signers: {one: {key: abc}}', /a public key in PEM/],
    ['  minimum: {ci: 2027-02-30}', /there is no time 2027-02-30/],
    ['  revoked: [debian-12]', /the digest of an image/],
    ['  local: perhaps', /`allow` or `deny`/],
    ['  attestations: [all]', /`provenance` or `sbom`/],
    ['  scan: {fail-on: bad}', /`critical` or `high`/],
    ['  max-ago: 3d', /max-ago/],
  ];
  for (const [image, message] of wrong)
    assert.match(
      problems(() => withImage(image)),
      message,
      image,
    );
});

test('which code may run is said in general, for a repository and for strangers; all of it may unless it is said', () => {
  const all = { mode: 'off', trust: { source: true, built: true }, inline: {} };
  assert.deepEqual(toPlain(parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}`).config.general.exec), all);
  const { config } = parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}exec:
  mode: audit
  inline: [perl]
  interpreters: [{path: /usr/bin/guile, endings: [.scm], options: [-c]}]
repositories:
  acme/site: {exec: {mode: terminate, trust: []}}
untrusted:
  egress: {allow: []}
  exec: {trust: [built], inline: ['*']}
`);
  assert.deepEqual(toPlain(config.general.exec), { ...all, mode: 'audit', inline: { perl: true } });
  const site = { mode: 'terminate', trust: {}, inline: { perl: true } };
  assert.deepEqual(toPlain(config.profiles.exact['acme/site']?.exec), site);
  const strangers = { mode: 'audit', trust: { built: true }, inline: { '*': true } };
  assert.deepEqual(toPlain(config.untrusted?.exec), strangers);
  const guile = { '/usr/bin/guile': { endings: ['.scm'], options: ['-c'], arguments: 'first' } };
  assert.deepEqual(toPlain(config.interpreters), guile);
});

/** Without what has no prototype. */
function toPlain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value));
}

for (const [name, exec] of [
  ['an unknown mode', 'mode: strict'],
  ['an unknown origin', 'trust: [downloads]'],
  ['an interpreter without an absolute path', 'interpreters: [{path: python3}]'],
  ['the same interpreter twice', 'interpreters: [{path: /a}, {path: /a}]'],
  ['an ending that is too long for a guest', 'interpreters: [{path: /a, endings: [.abcdefghijklmnopq]}]'],
  ['an ending that looks like an option', 'interpreters: [{path: /a, endings: [-c]}]'],
  ['an ending that is a path', 'interpreters: [{path: /a, endings: [x/y]}]'],
  ['an option that is none', 'interpreters: [{path: /a, options: [c]}]'],
] as const) {
  test(`POLICY_INVALID: ${name} of code`, () => {
    assert.throws(() => parse(`version: 1\n${EGRESS}${ADMISSION}${LIMITS}exec:\n  ${exec}\n`), {
      code: 'POLICY_INVALID',
    });
  });
}
