/**
 * Compiles and tests Rego with OPA's own program: the one on PATH, else the pinned version, which Go installs into CT_HOME. The
 * shipped policy needs neither: it is compiled already.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { resolve as absolute, delimiter, dirname, join } from 'node:path';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import { readSource, type SourceText } from '../core/source-text.ts';
import { ENTRYPOINTS } from '../policy/input.ts';

export const OPA_VERSION = '1.22.2';
const OPA_MODULE = `github.com/open-policy-agent/opa@v${OPA_VERSION}`;

/** Written by the operator; a file of rules has some dozens of KiB. */
const MAX_REGO_BYTES = 1024 * 1024;
const MAX_REGO_FILES = 1000;
/** The shipped policy has some 200 KiB. */
const MAX_WASM_BYTES = 64 * 1024 * 1024;
const MAX_OPA_OUTPUT_BYTES = 16 * 1024 * 1024;
const MAX_TOOL_OUTPUT_BYTES = 1024 * 1024;
/** On two slow cores it takes five minutes. */
const INSTALL_TIMEOUT_MS = 20 * 60_000;
const COMPILE_TIMEOUT_MS = 2 * 60_000;
const TEST_TIMEOUT_MS = 10 * 60_000;

export interface ToolOptions {
  readonly ctHome: string;
  /** Told what takes long. */
  readonly progress?: (message: string) => void;
  readonly signal?: AbortSignal;
  /** Where programs are looked for; PATH of the environment if absent. */
  readonly searchPath?: string;
}

/** Rules without tests, below a directory, in the order of their names. */
export function regoSources(directory: string): readonly SourceText[] {
  const files = readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.rego') && !file.endsWith('_test.rego'))
    .sort();
  if (files.length > MAX_REGO_FILES) {
    throw new CtError('POLICY_INVALID', `${directory} has more than ${MAX_REGO_FILES} files of Rego`);
  }
  return files.map((file) =>
    readSource(join(directory, file), file, {
      maxBytes: MAX_REGO_BYTES,
      code: 'POLICY_INVALID',
      missingCode: 'POLICY_INVALID',
    }),
  );
}

/** Hex SHA-256 over names and texts, in their order. */
export function sourceDigest(sources: readonly SourceText[]): string {
  const hash = createHash('sha256');
  for (const { name, text } of sources) hash.update(JSON.stringify([name, text]));
  return hash.digest('hex');
}

/** Where modules come from is for Go's own configuration to say, which it finds through these. */
const GO_SETTINGS = [
  'HOME',
  'GOCACHE',
  'GOENV',
  'GOFLAGS',
  'GOMODCACHE',
  'GONOPROXY',
  'GONOSUMDB',
  'GOPATH',
  'GOPRIVATE',
  'GOPROXY',
  'GOSUMDB',
  'GOTOOLCHAIN',
  'HTTPS_PROXY',
  'NO_PROXY',
  'SSL_CERT_DIR',
  'SSL_CERT_FILE',
  'XDG_CACHE_HOME',
  'XDG_CONFIG_HOME',
  'https_proxy',
  'no_proxy',
];

/** Path of `opa`; installs it if it is missing and Go is there. Throws REQUIREMENT_MISSING. */
export async function findOpa(options: ToolOptions): Promise<string> {
  const installed = join(options.ctHome, 'tools', `opa-${OPA_VERSION}`, 'opa');
  const found = onPath('opa', options.searchPath) ?? (existsSync(installed) ? installed : undefined);
  if (found !== undefined) return found;
  const go = onPath('go', options.searchPath);
  const hint = `install OPA ${OPA_VERSION} (openpolicyagent.org/docs) and have it on PATH; or install Go, and ct gets it through that`;
  if (go === undefined) {
    throw new CtError(
      'REQUIREMENT_MISSING',
      'Rego of your own is compiled by the program `opa`, which is not installed',
      { hint },
    );
  }
  options.progress?.(`installing opa ${OPA_VERSION} with go, once; this takes some minutes`);
  const tools = join(options.ctHome, 'tools');
  mkdirSync(tools, { recursive: true, mode: 0o700 });
  const work = mkdtempSync(join(tools, '.opa-'));
  try {
    await runProgram({
      file: go,
      args: ['install', '-trimpath', OPA_MODULE],
      env: {
        ...passedOn(GO_SETTINGS),
        GOBIN: work,
        CGO_ENABLED: '0',
      },
      maxOutputBytes: MAX_TOOL_OUTPUT_BYTES,
      signal: limited(options.signal, INSTALL_TIMEOUT_MS),
      failureCode: 'REQUIREMENT_MISSING',
    });
    mkdirSync(dirname(installed), { recursive: true, mode: 0o700 });
    renameSync(join(work, 'opa'), installed);
  } catch (error) {
    if (options.signal?.aborted || !(error instanceof CtError) || error.code === 'STORE_FULL') throw error;
    throw new CtError('REQUIREMENT_MISSING', `opa ${OPA_VERSION} could not be installed: ${error.message}`, {
      hint,
      cause: error,
    });
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return installed;
}

/** `1.22.2` */
export async function opaVersion(opa: string): Promise<string> {
  const output = await runProgram({
    file: opa,
    args: ['version'],
    maxOutputBytes: MAX_TOOL_OUTPUT_BYTES,
    signal: AbortSignal.timeout(COMPILE_TIMEOUT_MS),
    failureCode: 'REQUIREMENT_MISSING',
  });
  return /^Version: (\S+)$/m.exec(output.toString())?.[1] ?? 'unknown';
}

/**
 * The shipped rules with those of `directories`, compiled to WebAssembly. Kept below CT_HOME by the digest of all sources.
 * Throws POLICY_INVALID with OPA's own words if they do not compile, or REQUIREMENT_MISSING.
 */
export async function compilePolicy(
  directories: readonly string[],
  options: ToolOptions,
): Promise<{ readonly wasm: Uint8Array; readonly sourceDigest: string }> {
  // Read once: what is compiled is what it is kept as.
  const sources = directories.map((directory) => ({ directory, files: regoSources(directory) }));
  const digest = sourceDigest(sources.flatMap(({ files }) => files));
  const cache = join(options.ctHome, 'policy-cache');
  const kept = join(cache, `${digest}.wasm`);
  if (existsSync(kept)) return { wasm: readFileSync(kept), sourceDigest: digest };
  const opa = await findOpa(options);
  mkdirSync(cache, { recursive: true, mode: 0o700 });
  const work = mkdtempSync(join(cache, '.compile-'));
  try {
    options.progress?.('compiling the policy');
    const wasm = await compileTo(work, opa, sources, options.signal);
    writeFileSync(join(work, 'kept'), wasm, { mode: 0o600 });
    renameSync(join(work, 'kept'), kept);
    return { wasm, sourceDigest: digest };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Rules, and the directory that they were read from. */
export interface RuleSources {
  readonly directory: string;
  readonly files: readonly SourceText[];
}

/**
 * Compiles rules, in the directory `work`. The same sources and version of OPA give the same bytes,
 * wherever they lie: the program holds the names of its files, which are those of copies.
 */
export async function compileTo(
  work: string,
  opa: string,
  sources: readonly RuleSources[],
  signal?: AbortSignal,
): Promise<Uint8Array> {
  for (const [index, { files }] of sources.entries()) {
    for (const source of files) {
      const copy = join(work, 'rego', String(index), source.name);
      mkdirSync(dirname(copy), { recursive: true });
      writeFileSync(copy, source.text, { mode: 0o600 });
    }
  }
  const limit = limited(signal, COMPILE_TIMEOUT_MS);
  const entrypoints = ENTRYPOINTS.map((entry) => `--entrypoint=${entry}`);
  const { status, output } = await runOpa(
    opa,
    ['build', '--target=wasm', ...entrypoints, '--output=bundle.tar.gz', 'rego'],
    { directory: work, signal: limit },
  );
  if (status !== 0) {
    const told = sources.reduce(
      (text, { directory }, index) => text.replaceAll(`rego/${index}/`, `${directory}/`),
      output.trim(),
    );
    throw new CtError('POLICY_INVALID', `the policy does not compile:\n${told}`);
  }
  return runProgram({
    file: 'tar',
    args: ['--extract', '--gzip', '--to-stdout', `--file=${join(work, 'bundle.tar.gz')}`, '/policy.wasm'],
    maxOutputBytes: MAX_WASM_BYTES,
    signal: limit,
    failureCode: 'POLICY_UNAVAILABLE',
  });
}

export interface OpaTestResult {
  readonly passed: boolean;
  /** What `opa test` printed, for people. */
  readonly output: string;
}

/** Runs the Rego tests (`*_test.rego`) below the directories. Throws REQUIREMENT_MISSING, or POLICY_INVALID if it takes too long. */
export async function opaTest(directories: readonly string[], options: ToolOptions): Promise<OpaTestResult> {
  const opa = await findOpa(options);
  const { status, output } = await runOpa(
    opa,
    ['test', '--verbose', ...directories.map((path) => absolute(path))],
    {
      directory: '/',
      signal: limited(options.signal, TEST_TIMEOUT_MS),
    },
  );
  return { passed: status === 0, output };
}

/** Ends it when `signal` aborts. Its output is both streams: OPA tells of errors on either. */
async function runOpa(
  opa: string,
  args: readonly string[],
  options: { readonly directory: string; readonly signal: AbortSignal },
): Promise<{ readonly status: number | null; readonly output: string }> {
  const { directory, signal } = options;
  const child = spawn(opa, args, {
    cwd: directory,
    stdio: ['ignore', 'pipe', 'pipe'],
    // OPA asks nobody for a newer version of itself, and reads no configuration.
    env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C', OPA_SKIP_VERSION_CHECK: 'true' },
    signal,
    killSignal: 'SIGKILL',
  });
  const output = new BoundedTail(MAX_OPA_OUTPUT_BYTES);
  child.stdout.on('data', (chunk: Buffer) => output.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => output.push(chunk));
  const { promise, resolve, reject } = Promise.withResolvers<number | null>();
  child.once('error', reject);
  child.once('close', resolve);
  try {
    return { status: await promise, output: output.text() };
  } catch (error) {
    if (!signal.aborted)
      throw new CtError('REQUIREMENT_MISSING', `${opa} could not be started`, { cause: error });
    const tooLong = signal.reason instanceof DOMException && signal.reason.name === 'TimeoutError';
    throw tooLong
      ? new CtError('POLICY_INVALID', `opa ${args[0]} did not end in the time it has`, { cause: error })
      : new CtError('CANCELLED', `opa ${args[0]} was cancelled`, { cause: error });
  }
}

function limited(signal: AbortSignal | undefined, timeoutMs: number): AbortSignal {
  const timeout = AbortSignal.timeout(timeoutMs);
  return signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
}

/** Where a program lies, if it is there. */
export function onPath(program: string, searchPath = process.env['PATH'] ?? ''): string | undefined {
  return searchPath
    .split(delimiter)
    .filter((directory) => directory.startsWith('/'))
    .map((directory) => join(directory, program))
    .find((candidate) => {
      try {
        accessSync(candidate, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

function passedOn(names: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    names.flatMap((name) => {
      const value = process.env[name];
      return value === undefined ? [] : [[name, value] as const];
    }),
  );
}
