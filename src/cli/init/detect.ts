/** What a repository is built with, judged by the files in its root. */
import { closeSync, constants, fstatSync, openSync, readdirSync, readSync } from 'node:fs';
import { join } from 'node:path';
import type { PresetName } from '../../egress/presets/names.ts';

/** Read whole and only looked through for names; larger ones are taken for something else. */
const MAX_FILE_BYTES = 1024 * 1024;

export type ToolKind = 'npm' | 'make' | 'cargo' | 'go' | 'python';

export interface Tool {
  readonly kind: ToolKind;
  /** File that gave it away. */
  readonly file: string;
  /** The image of ct that fits best. */
  readonly image: 'debian-12' | 'node' | 'python';
  /** Debian packages beyond it. */
  readonly packages: readonly string[];
  /** Private keys in them that an image has to name: examples and tests (docs/images.md). */
  readonly keys?: readonly string[];
  readonly steps: readonly { readonly name: string; readonly run: string }[];
  /** Network preset that its downloads need; absent if there are none. */
  readonly network?: PresetName;
  /** What else the user has to know, one sentence a line. */
  readonly notes: readonly string[];
}

/** In the order in which jobs are written. Files that cannot be read or parsed count as empty. */
export function detectTools(directory: string): Tool[] {
  const files = new Set(readdirSync(directory));
  const read = (name: string): string => (files.has(name) ? readText(join(directory, name)) : '');
  return [npm(files, read), cargo(files, read), go(files), python(files, read), make(files, read)].filter(
    (tool) => tool !== undefined,
  );
}

type Read = (name: string) => string;

function npm(files: ReadonlySet<string>, read: Read): Tool | undefined {
  if (!files.has('package.json')) return undefined;
  const manifest = parseObject(read('package.json'));
  const scripts = asObject(manifest['scripts']);
  const client = files.has('pnpm-lock.yaml') ? 'pnpm' : files.has('yarn.lock') ? 'yarn' : 'npm';
  const wanted = ['lint', 'typecheck', 'build', 'test'].filter((name) => {
    const script = scripts[name];
    // What `npm init` writes.
    return typeof script === 'string' && !script.includes('no test specified');
  });
  const steps = wanted.map((name) => ({
    name,
    run: name === 'test' ? `${client} test` : `${client} run ${name}`,
  }));
  const hasDependencies = ['dependencies', 'devDependencies'].some(
    (key) => Object.keys(asObject(manifest[key])).length > 0,
  );
  const isLocked = files.has('package-lock.json') || files.has('npm-shrinkwrap.json');
  const install =
    client === 'npm' ? `npm ${isLocked ? 'ci' : 'install'}` : `${client} install --frozen-lockfile`;
  return {
    kind: 'npm',
    file: 'package.json',
    image: 'node',
    packages: [],
    steps: [
      ...(hasDependencies ? [{ name: 'install', run: install }] : []),
      ...(steps.length > 0 ? steps : [{ name: 'check', run: 'node --version && npm --version' }]),
    ],
    ...(hasDependencies ? { network: 'npm' } : {}),
    notes:
      client === 'npm'
        ? []
        : [`${client} is not in the image: keep it in the repository, or let npm do the work.`],
  };
}

function cargo(files: ReadonlySet<string>, read: Read): Tool | undefined {
  if (!files.has('Cargo.toml')) return undefined;
  const locked = files.has('Cargo.lock') ? ' --locked' : '';
  const hasDependencies = /^\[(?:[\w.'()"= -]+\.)?(?:dev-|build-)?dependencies[\].]/m.test(
    read('Cargo.toml'),
  );
  const downloads = hasDependencies && !files.has('vendor');
  const options = `${downloads ? '' : ' --offline'}${locked}`;
  return {
    kind: 'cargo',
    file: 'Cargo.toml',
    image: 'debian-12',
    packages: ['cargo'],
    steps: [
      { name: 'build', run: `cargo build${options}` },
      { name: 'test', run: `cargo test${options}` },
    ],
    ...(downloads ? { network: 'cargo' } : {}),
    notes: downloads
      ? [
          'The preset `cargo` follows ~/.cargo/config.toml of the host; without one, `cargo vendor` does without it.',
        ]
      : [],
  };
}

function go(files: ReadonlySet<string>): Tool | undefined {
  if (!files.has('go.mod')) return undefined;
  return {
    kind: 'go',
    file: 'go.mod',
    image: 'debian-12',
    packages: ['golang-go'],
    // Of the Go of Debian 12.
    keys: ['/usr/share/go-1.19/src/crypto/tls/testdata/example-key.pem'],
    steps: [
      { name: 'build', run: 'go build ./...' },
      { name: 'vet', run: 'go vet ./...' },
      { name: 'test', run: 'go test ./...' },
    ],
    ...(files.has('go.sum') && !files.has('vendor') ? { network: 'go' } : {}),
    notes: [],
  };
}

function python(files: ReadonlySet<string>, read: Read): Tool | undefined {
  const file = ['pyproject.toml', 'requirements.txt', 'setup.py', 'setup.cfg'].find((name) =>
    files.has(name),
  );
  if (file === undefined) return undefined;
  const configuration = [
    'pyproject.toml',
    'requirements.txt',
    'requirements-dev.txt',
    'setup.cfg',
    'tox.ini',
  ].map(read);
  const usesPytest =
    files.has('pytest.ini') ||
    files.has('conftest.py') ||
    configuration.some((text) => /\bpytest\b/.test(text));
  const requirements = files.has('requirements.txt')
    ? '-r requirements.txt'
    : files.has('setup.py') || /^\[(?:project|build-system)\]/m.test(read('pyproject.toml'))
      ? '-e .'
      : undefined;
  const python = requirements === undefined ? 'python3' : '.venv/bin/python';
  const bringsPytest = /\bpytest\b/.test(read('requirements.txt'));
  const install = `.venv/bin/pip install ${requirements}${usesPytest && !bringsPytest ? ' pytest' : ''}`;
  return {
    kind: 'python',
    file,
    image: 'python',
    packages: requirements === undefined && usesPytest ? ['python3-pytest'] : [],
    steps: [
      { name: 'compile', run: 'python3 -m compileall -q .' },
      ...(requirements === undefined
        ? []
        : [
            { name: 'environment', run: 'python3 -m venv .venv' },
            { name: 'install', run: install },
          ]),
      { name: 'test', run: `${python} -m ${usesPytest ? 'pytest' : 'unittest discover'}` },
    ],
    ...(requirements === undefined
      ? { notes: [] }
      : {
          network: 'pypi' as const,
          notes: ['The image has no compilers: packages without wheels need the image debian-12.'],
        }),
  };
}

function make(files: ReadonlySet<string>, read: Read): Tool | undefined {
  const file = ['GNUmakefile', 'makefile', 'Makefile'].find((name) => files.has(name));
  if (file === undefined) return undefined;
  const targets = new Set(
    [...read(file).matchAll(/^([A-Za-z0-9][\w.-]*)[ \t]*::?(?![:=])/gm)].map((match) => match[1]),
  );
  const test = ['test', 'check', 'tests'].find((name) => targets.has(name));
  const build = ['all', 'build'].find((name) => targets.has(name));
  return {
    kind: 'make',
    file,
    image: 'debian-12',
    packages: [],
    steps: [
      { name: 'build', run: build === undefined ? 'make' : `make ${build}` },
      ...(test === undefined ? [] : [{ name: 'test', run: `make ${test}` }]),
    ],
    notes: [],
  };
}

function readText(path: string): string {
  let fd: number | undefined;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stat = fstatSync(fd);
    if (!stat.isFile() || stat.size > MAX_FILE_BYTES) return '';
    const buffer = Buffer.alloc(stat.size);
    return buffer.toString('utf8', 0, readSync(fd, buffer, 0, buffer.length, 0));
  } catch {
    return '';
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

function parseObject(text: string): Record<string, unknown> {
  try {
    return asObject(JSON.parse(text));
  } catch {
    return {};
  }
}

function asObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}
