import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import type { AuthorityPlaces } from '../../src/egress/presets/authorities.ts';
import { ask } from '../../src/egress/presets/client.ts';
import { PresetResolver } from '../../src/egress/presets/index.ts';
import type { PresetResolution } from '../../src/egress/presets/preset.ts';
import { scratchDirectory } from '../support/scratch.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());
let directories = 0;

/** A directory with the given files; those below `bin` can be run. */
function files(content: Record<string, string>): string {
  const root = join(scratch.path, `d${directories++}`);
  mkdirSync(root);
  for (const [name, text] of Object.entries(content)) {
    const path = join(root, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
    if (name.startsWith('bin/')) chmodSync(path, 0o755);
  }
  return root;
}

const PATH = process.env['PATH'] ?? '';
const NO_PLACES = { systemBundles: [], localDirectory: '/nonexistent' };

function has(program: string): boolean {
  try {
    execFileSync('sh', ['-c', 'command -v "$1"', 'sh', program], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** The real client must be there; where it is not, the test says so instead of passing. */
function needs(program: string): { skip: string | false } {
  return { skip: has(program) ? false : `${program} is not installed` };
}

async function resolve(name: string, env: Record<string, string>): Promise<PresetResolution> {
  const [found] = await new PresetResolver(env, { places: NO_PLACES }).resolve([name]);
  return found ?? assert.fail();
}

function places(preset: PresetResolution): string[] {
  return preset.destinations.map(({ protocol, host, port }) => `${protocol} ${host} ${port}`);
}

const unconfigured = (message: RegExp, hint: RegExp) => (error: unknown) => {
  const { code, ...told } = error as { code: string; message: string; hint: string };
  assert.equal(code, 'PRESET_UNCONFIGURED');
  assert.match((error as Error).message, message);
  assert.match(told.hint, hint);
  return true;
};

// ------------------------------------------------------------------------------------------ the operator's word

const HOSTILE = 'registry=https://evil.example/\nstrict-ssl=false\ncafile=/etc/passwd\n';

test(
  'npm: the .npmrc of the project that the daemon was started in chooses nothing',
  needs('npm'),
  async () => {
    const home = files({ '.npmrc': 'registry=https://registry.corp.example:8443/npm/\n' });
    const project = files({
      '.npmrc': HOSTILE,
      'package.json': '{}',
      'node_modules/.bin/npm': '#!/bin/sh\nexit 9\n',
    });
    chmodSync(join(project, 'node_modules/.bin/npm'), 0o755);
    const before = process.cwd();
    process.chdir(project);
    try {
      // Control: npm itself, run there, follows the project.
      const npm = execFileSync('npm', ['config', 'get', 'registry'], {
        env: { PATH, HOME: home },
        encoding: 'utf8',
      });
      assert.equal(npm.trim(), 'https://evil.example/');
      // As `npm run` would leave the environment of a daemon that it started.
      const polluted = {
        PATH: `${project}/node_modules/.bin:.:${PATH}`,
        HOME: home,
        npm_command: 'run-script',
        npm_config_registry: 'https://evil.example/',
      };
      for (const env of [{ PATH, HOME: home }, polluted]) {
        const preset = await resolve('npm', env);
        assert.deepEqual(preset.destinations, [
          { rule: 'npm', host: 'registry.corp.example', port: 8443, protocol: 'tls', addresses: 'any' },
        ]);
        assert.equal(preset.env['npm_config_registry'], 'https://registry.corp.example:8443/npm/');
        assert.deepEqual(preset.shown, {
          name: 'npm',
          destinations: ['registry.corp.example:8443'],
          source: 'npm config registry',
        });
        assert.deepEqual(preset.notices, []);
      }
    } finally {
      process.chdir(before);
    }
  },
);

test('npm: no credential of the configuration is carried over', needs('npm'), async () => {
  const lines = [
    'registry=https://registry.corp.example/?key=hunter22',
    '//registry.corp.example/:_authToken=hunter22',
    '//registry.corp.example/:_password=aHVudGVyMjI=',
    '@team:registry=https://team.corp.example/',
    '',
  ];
  const home = files({ '.npmrc': lines.join('\n') });
  const real = await resolve('npm', { PATH, HOME: home, npm_config__auth: 'hunter22' });
  // Versions of npm that show URLs with a user and a password.
  const config = JSON.stringify({
    registry: 'https://bob:hunter22@registry.corp.example/',
    '@team:registry': 'https://bob:hunter22@team.corp.example/',
    '//registry.corp.example/:_authToken': 'hunter22',
    _auth: 'aHVudGVyMjI=',
  });
  const bin = files({ 'bin/npm': `#!/bin/sh\necho '${config}'\n` });
  const older = await resolve('npm', { PATH: `${bin}/bin:/usr/bin:/bin` });
  for (const preset of [real, older]) {
    assert.doesNotMatch(JSON.stringify(preset), /hunter22|bob:|aHVudGVyMjI=/);
    assert.deepEqual(places(preset), ['tls registry.corp.example 443', 'tls team.corp.example 443']);
    assert.equal(preset.env['npm_config_@team:registry'], 'https://team.corp.example/');
  }
  // One that holds it back is asked for another way to give it.
  writeFileSync(join(bin, 'bin/npm'), "#!/bin/sh\necho '{}'\n");
  await assert.rejects(
    resolve('npm', { PATH: `${bin}/bin:/usr/bin:/bin` }),
    unconfigured(/does not tell its registry.*_authToken/, /npm config set/),
  );
});

test(
  'npm: verification that is off here stays on in the guest, plain HTTP is one port and a notice',
  needs('npm'),
  async () => {
    const home = files({ '.npmrc': 'registry=http://registry.corp.example:4873/\nstrict-ssl=false\n' });
    const preset = await resolve('npm', { PATH, HOME: home });
    assert.deepEqual(places(preset), ['http registry.corp.example 4873']);
    assert.match(preset.notices.join('\n'), /without TLS[\s\S]*strict-ssl is off/);
    assert.doesNotMatch(JSON.stringify([preset.env, preset.homeFiles]), /strict|false/);
  },
);

test('PRESET_UNCONFIGURED names the setting and the command where the client is missing', async () => {
  const nowhere = { PATH: '/nonexistent', HOME: files({}) };
  await assert.rejects(
    resolve('npm', nowhere),
    unconfigured(/`npm` .*npm is not installed/, /npm config set registry URL/),
  );
  await assert.rejects(
    resolve('pypi', nowhere),
    unconfigured(/pip is not installed/, /pip config --user set global\.index-url/),
  );
  await assert.rejects(resolve('go', nowhere), unconfigured(/go is not installed/, /go env -w GOPROXY=URL/));
  await assert.rejects(
    resolve('debian', nowhere),
    unconfigured(/apt-get is not installed/, /apt-get update.*CT_APT_SOURCES/),
  );
  await assert.rejects(
    resolve('cargo', nowhere),
    unconfigured(/there is no .*\.cargo\/config\.toml/, /\[source\.crates-io\]/),
  );
  await assert.rejects(resolve('nmp', nowhere), unconfigured(/no network preset `nmp`/, /`npm`, `pypi`/));
  // The daemon's own variables will do without the client.
  const preset = await resolve('npm', { ...nowhere, npm_config_registry: 'https://r.example/' });
  assert.deepEqual(places(preset), ['tls r.example 443']);
});

test('PRESET_UNCONFIGURED for clients that print nothing, nonsense, too much, or patterns of hosts', async () => {
  for (const output of [
    '',
    'null',
    '{"registry": 5}',
    '{"registry": "https://*.example/"}',
    '{"registry": "/srv"}',
  ]) {
    const bin = files({ 'bin/npm': `#!/bin/sh\nprintf '%s' '${output}'\n` });
    await assert.rejects(
      resolve('npm', { PATH: `${bin}/bin:/usr/bin:/bin` }),
      { code: 'PRESET_UNCONFIGURED' },
      output,
    );
  }
  const flood = files({ 'bin/npm': '#!/bin/sh\nexec yes\n' });
  await assert.rejects(
    resolve('npm', { PATH: `${flood}/bin:/usr/bin:/bin` }),
    unconfigured(/printed too much/, /./),
  );
});

test('a client that hangs is ended in time, with what it started', async () => {
  const bin = files({ 'bin/npm': '#!/bin/sh\nsleep 1000 &\necho $! > "$HOME/pid"\nwait\n' });
  const around = { PATH: `${bin}/bin:/usr/bin:/bin`, HOME: bin };
  const answer = await ask({ file: 'npm', args: [], env: {} }, around, 500);
  assert.equal(answer.problem, 'did not answer in 0.5 s');
  const pid = Number(readFileSync(join(bin, 'pid'), 'utf8'));
  // Killed, and perhaps not yet collected by whoever adopted it.
  const state = existsSync(`/proc/${pid}/stat`)
    ? readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.[0]
    : 'gone';
  assert.ok(['gone', 'Z', 'X'].includes(state ?? ''), `the client is in state ${state}`);
});

test('what a client prints to stderr is in no error', async () => {
  const bin = files({ 'bin/npm': '#!/bin/sh\necho hunter22 >&2\nexit 1\n' });
  await assert.rejects(resolve('npm', { PATH: `${bin}/bin:/usr/bin:/bin` }), (error: Error) => {
    assert.doesNotMatch(`${error.message} ${String(error.cause)}`, /hunter22/);
    return true;
  });
});

// --------------------------------------------------------------------------------------------- the other clients

/** Prints its configuration as the script of the preset would. */
function fakePip(settings: Record<string, string>): Record<string, string> {
  const answer = JSON.stringify({ settings, index: 'https://index.example/simple', files: 'files.example' });
  const bin = files({ 'bin/python3': `#!/bin/sh\ncat <<'END'\n${answer}\nEND\n` });
  return { PATH: `${bin}/bin:/usr/bin:/bin`, HOME: bin };
}

test('pypi: the default index with its files, else the configured ones, without credentials', async () => {
  const plain = await resolve('pypi', fakePip({}));
  assert.deepEqual(places(plain), ['tls index.example 443', 'tls files.example 443']);
  assert.equal(plain.env['PIP_INDEX_URL'], 'https://index.example/simple');
  const mirror = await resolve(
    'pypi',
    fakePip({
      'global.index-url': 'https://weaker.example/simple',
      'install.index-url': 'https://bob:hunter22@mirror.example/simple',
      'global.extra-index-url': '\nhttps://one.example/simple\nhttp://two.example:81/simple',
      'global.trusted-host': 'two.example',
    }),
  );
  assert.deepEqual(places(mirror), ['tls mirror.example 443', 'tls one.example 443', 'http two.example 81']);
  assert.equal(mirror.env['PIP_EXTRA_INDEX_URL'], 'https://one.example/simple http://two.example:81/simple');
  assert.doesNotMatch(JSON.stringify(mirror), /hunter22|bob[:@]/);
  assert.match(mirror.notices.join('\n'), /two\.example:81 without TLS[\s\S]*trusted-host/);
  assert.equal(mirror.env['PIP_TRUSTED_HOST'], undefined);
});

test('pypi: the installed pip says what it would use', needs('python3'), async (t) => {
  const home = files({});
  try {
    const preset = await resolve('pypi', {
      PATH,
      HOME: home,
      PIP_INDEX_URL: 'https://mirror.example/simple',
    });
    assert.deepEqual(places(preset), ['tls mirror.example 443']);
  } catch (error) {
    if (/pip is not installed/.test((error as Error).message)) return t.skip('pip is not installed');
    throw error;
  }
  const preset = await resolve('pypi', { PATH, HOME: home, PIP_CONFIG_FILE: '/dev/null' });
  assert.equal(preset.destinations.length, 2, 'the built-in index and its files');
});

test('a virtual environment of a project supplies no client', async () => {
  const project = files({ 'venv/pyvenv.cfg': '', 'venv/bin/python3': '#!/bin/sh\necho "{}"\n' });
  chmodSync(join(project, 'venv/bin/python3'), 0o755);
  const pip = fakePip({});
  const preset = await resolve('pypi', { ...pip, PATH: `${project}/venv/bin:${pip['PATH']}` });
  assert.deepEqual(places(preset), ['tls index.example 443', 'tls files.example 443']);
});

test('go: proxies in their order, the checksum database, and nothing insecure', needs('go'), async () => {
  const env = {
    PATH,
    HOME: files({}),
    GOPROXY: 'https://bob:hunter22@one.example/mod|file:///srv/mod,https://two.example,direct',
    GOSUMDB: 'sum.example',
    GOPRIVATE: 'corp.example/*',
    GOINSECURE: 'corp.example',
  };
  const preset = await resolve('go', env);
  assert.deepEqual(places(preset), ['tls one.example 443', 'tls two.example 443', 'tls sum.example 443']);
  assert.deepEqual(preset.env, {
    GOPROXY: 'https://one.example/mod,https://two.example/,direct',
    GOSUMDB: 'sum.example',
    GOPRIVATE: 'corp.example/*',
    GONOSUMDB: 'corp.example/*',
    GONOPROXY: 'corp.example/*',
  });
  assert.match(preset.notices.join(), /GOINSECURE/);
  const url = await resolve('go', { ...env, GOSUMDB: 'sum.example+abc+key https://mirror.example/sumdb' });
  assert.equal(url.env['GOSUMDB'], 'sum.example+abc+key https://mirror.example/sumdb');
  assert.equal(places(url).at(-1), 'tls mirror.example 443');
  assert.deepEqual(places(await resolve('go', { ...env, GOSUMDB: 'off' })).length, 2);
  await assert.rejects(resolve('go', { ...env, GOPROXY: 'off' }), { code: 'PRESET_UNCONFIGURED' });
});

test('debian: the mirrors of Debian sources only, with their authorities', async () => {
  const stanza = (origin: string, uri: string) =>
    `Created-By: Packages\nOrigin: ${origin}\nRepo-URI: ${uri}\n`;
  const targets = [
    stanza('Debian', 'http://mirror.example/debian/'),
    stanza('Debian', 'https://bob:hunter22@secure.example/debian/'),
    stanza('Debian', 'file:/srv/debian/'),
    stanza('Other', 'https://other.example/'),
  ].join('\n');
  const bin = files({
    'bin/apt-get': `#!/bin/sh\ncat <<'END'\n${targets}\nEND\n`,
    'bin/apt-config': '#!/bin/sh\necho \'Acquire::https::Verify-Peer "false";\'\n',
  });
  const preset = await resolve('debian', { PATH: `${bin}/bin:/usr/bin:/bin` });
  assert.deepEqual(places(preset), ['http mirror.example 80', 'tls secure.example 443']);
  assert.match(preset.notices.join('\n'), /does not verify TLS/);
  assert.doesNotMatch(JSON.stringify(preset), /hunter22/);
  const list = join(bin, 'sources.list');
  writeFileSync(list, 'deb https://file.example/debian stable main\n# deb http://no.example/ x\n');
  assert.deepEqual(places(await resolve('debian', { PATH: '/usr/bin', CT_APT_SOURCES: list })), [
    'tls file.example 443',
  ]);
});

test(
  'github: the documented hosts, and what the git of this machine uses instead',
  needs('git'),
  async () => {
    const home = files({
      '.gitconfig': [
        '[url "https://bob:hunter22@mirror.example/github/"]',
        '\tinsteadOf = https://github.com/',
        '[url "git@ssh-mirror.example:"]',
        '\tinsteadOf = git@github.com:',
        '[url "https://elsewhere.example/"]',
        '\tinsteadOf = https://other.example/',
        '[http]',
        '\tsslVerify = false',
        '',
      ].join('\n'),
    });
    const env = { PATH, HOME: home, GIT_CONFIG_NOSYSTEM: '1' };
    const preset = await resolve('github', env);
    const found = places(preset);
    for (const place of [
      'tls mirror.example 443',
      'ssh ssh-mirror.example 22',
      'tls github.com 443',
      'ssh github.com 22',
    ]) {
      assert.ok(found.includes(place), place);
    }
    assert.ok(!found.some((place) => place.includes('elsewhere')));
    assert.match(preset.notices.join('\n'), /sslVerify is off/);
    assert.doesNotMatch(JSON.stringify(preset), /hunter22|bob[:@]/);
    // What the guest is given works as git's own settings do.
    const rewritten = execFileSync('git', ['ls-remote', '--get-url', 'https://github.com/a/b'], {
      env: { PATH, HOME: files({}), GIT_CONFIG_NOSYSTEM: '1', ...preset.env },
      cwd: '/',
      encoding: 'utf8',
    });
    assert.equal(rewritten.trim(), 'https://mirror.example/github/a/b');
    assert.ok(
      places(await resolve('github', { PATH: '/nonexistent', HOME: home })).includes('tls github.com 443'),
    );
  },
);

test('cargo: the registry that replaces the default one, and named registries, but none of a project', async () => {
  const home = files({
    '.cargo/config.toml': [
      '[source.crates-io] # the default',
      'replace-with = "a"',
      '[source]',
      'a = { replace-with = "b" }',
      "b.registry = 'sparse+https://bob:hunter22@crates.corp.example/index/'",
      '[registries."team"]',
      'index = "https://team.example/git/index"',
      'token = "hunter22"',
      '[http]',
      'timeout = 5',
      '',
    ].join('\n'),
  });
  const preset = await resolve('cargo', { HOME: home });
  assert.deepEqual(places(preset), ['tls crates.corp.example 443', 'tls team.example 443']);
  assert.deepEqual(preset.env, { CARGO_REGISTRIES_TEAM_INDEX: 'https://team.example/git/index' });
  assert.match(
    preset.homeFiles['.cargo/config.toml'] ?? '',
    /\[source\.crates-io\]\nreplace-with = "ct-host"\n\[source\.ct-host\]\nregistry = "sparse\+https:\/\/crates\.corp\.example\/index\/"/,
  );
  assert.doesNotMatch(JSON.stringify(preset), /hunter22/);
});

// ------------------------------------------------------------------------------------------------- authorities

function authority(name: string): { certificate: string; key: string } {
  const directory = files({});
  const [key, certificate] = [join(directory, 'key.pem'), join(directory, 'cert.pem')];
  execFileSync(
    'openssl',
    [
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
      '-days',
      '1',
    ].concat(['-subj', `/CN=${name}`, '-keyout', key, '-out', certificate]),
    { stdio: 'ignore' },
  );
  return { certificate: readFileSync(certificate, 'utf8'), key: readFileSync(key, 'utf8') };
}

const CORP = authority('corp');
const PUBLIC = authority('public');
const body = ({ certificate }: { certificate: string }): string => certificate.split('\n')[2] ?? '';

test(
  'authorities of a preset come with those of the machine, and never a private key',
  needs('npm'),
  async () => {
    const home = files({
      'ca.pem': `${CORP.key}a comment\n${CORP.certificate}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n`,
      'system.pem': PUBLIC.certificate,
    });
    writeFileSync(join(home, '.npmrc'), `registry=https://r.example/\ncafile=${home}/ca.pem\n`);
    const resolver = new PresetResolver(
      { PATH, HOME: home },
      {
        places: {
          systemBundles: [join(home, 'none.pem'), join(home, 'system.pem')],
          localDirectory: join(home, 'none'),
        },
      },
    );
    const presets = await resolver.resolve(['npm']);
    assert.match(presets[0]?.notices.join() ?? '', /1 of its certificates cannot be parsed/);
    const pem = (await resolver.guestSettings(presets)).settings.authoritiesPem ?? '';
    assert.ok(pem.includes(body(CORP)) && pem.includes(body(PUBLIC)));
    assert.equal(pem.match(/BEGIN/g)?.length, 2);
    assert.doesNotMatch(pem, /PRIVATE|comment/);
  },
);

test('authorities of variables and of the local directory count for jobs without presets, each once', async () => {
  const home = files({
    'local/sub/corp.crt': CORP.certificate,
    'local/README': 'x',
    'ca.pem': CORP.certificate,
  });
  const at = { systemBundles: [], localDirectory: join(home, 'local') };
  const settings = async (env: Record<string, string>, where: AuthorityPlaces) =>
    await new PresetResolver(env, { places: where }).guestSettings([]);
  for (const [env, where] of [
    [{}, at],
    [{ NODE_EXTRA_CA_CERTS: join(home, 'ca.pem') }, at],
    [{ SSL_CERT_FILE: join(home, 'ca.pem') }, NO_PLACES],
  ] as const) {
    const { settings: found } = await settings(env, { ...where, systemBundles: [] });
    assert.equal(found.authoritiesPem?.match(/BEGIN/g)?.length, 1);
  }
  // Control: nothing configured, nothing told, so that the image's own authorities stay.
  const bundle = { systemBundles: [join(home, 'ca.pem')], localDirectory: '/nonexistent' };
  assert.equal((await settings({}, bundle)).settings.authoritiesPem, undefined);
});

test('a file of authorities that is missing, too large, a pipe, or holds none is a notice', async () => {
  const home = files({ 'big.pem': 'x'.repeat(1024 * 1024 + 1), 'key.pem': CORP.key });
  execFileSync('mkfifo', [join(home, 'pipe')]);
  for (const [path, expected] of [
    ['none.pem', /ENOENT/],
    ['big.pem', /larger than 1048576/],
    ['pipe', /is no file/],
    ['key.pem', /no certificate/],
  ] as const) {
    const resolver = new PresetResolver({ SSL_CERT_FILE: join(home, path) }, { places: NO_PLACES });
    const { settings, notices } = await resolver.guestSettings([]);
    assert.match(notices.join(), expected);
    assert.equal(settings.authoritiesPem, undefined);
  }
  const relative = new PresetResolver({ SSL_CERT_FILE: 'ca.pem' }, { places: NO_PLACES });
  assert.match((await relative.guestSettings([])).notices.join(), /not an absolute path/);
});

// ---------------------------------------------------------------------------------------------------------- cache

test('an answer holds for a minute, a failure for no time, and presets are asked side by side', async () => {
  const bin = files({
    'bin/npm': `#!/bin/sh\nsleep 0.4\necho x >> "$HOME/asked"\necho '{"registry": "https://r.example/"}'\n`,
    'bin/python3': `#!/bin/sh\nsleep 0.4\necho '{"settings": {}, "index": "https://i.example/", "files": ""}'\n`,
  });
  let now = 0;
  const env = { PATH: `${bin}/bin:/usr/bin:/bin`, HOME: bin };
  const resolver = new PresetResolver(env, { places: NO_PLACES, now: () => now });
  const asked = (): number => readFileSync(join(bin, 'asked'), 'utf8').split('\n').length - 1;
  const startedAt = performance.now();
  await resolver.resolve(['npm', 'pypi', 'npm']);
  assert.ok(performance.now() - startedAt < 780, 'one after another would take 800 ms');
  now = 59_999;
  await resolver.resolve(['npm']);
  assert.equal(asked(), 1);
  now = 60_000;
  await resolver.resolve(['npm']);
  assert.equal(asked(), 2);
  writeFileSync(join(bin, 'bin/go'), '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  await assert.rejects(resolver.resolve(['go']));
  writeFileSync(join(bin, 'bin/go'), `#!/bin/sh\necho '{"GOPROXY": "https://g.example"}'\n`);
  assert.equal((await resolver.resolve(['go'])).length, 1);
});
