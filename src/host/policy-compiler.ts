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
import { delimiter, join } from 'node:path';
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
const MAX_TEST_OUTPUT_BYTES = 16 * 1024 * 1024;
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

/** Path of `opa`; installs it if it is missing and Go is there. Throws REQUIREMENT_MISSING. */
export async function findOpa(options: ToolOptions): Promise<string> {
  const installed = join(options.ctHome, 'tools', `opa-${OPA_VERSION}`, 'opa');
  const found = onPath('opa', options) ?? (existsSync(installed) ? installed : undefined);
  if (found !== undefined) return found;
  const go = onPath('go', options);
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
      // Where modules come from is for Go's own configuration to say, which it finds through HOME and these.
      env: {
        ...passedOn([
          'HOME',
          'GOPROXY',
          'GONOSUMDB',
          'GONOSUMCHECK',
          'GOSUMDB',
          'GOPRIVATE',
          'GOFLAGS',
          'GOPATH',
          'GOMODCACHE',
          'GOCACHE',
          'HTTPS_PROXY',
          'https_proxy',
          'NO_PROXY',
          'no_proxy',
          'SSL_CERT_FILE',
        ]),
        GOBIN: work,
        GOTOOLCHAIN: 'local',
        CGO_ENABLED: '0',
      },
      maxOutputBytes: MAX_TOOL_OUTPUT_BYTES,
      signal: limited(options.signal, INSTALL_TIMEOUT_MS),
      failureCode: 'REQUIREMENT_MISSING',
    });
    mkdirSync(join(installed, '..'), { recursive: true, mode: 0o700 });
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

/**
 * The shipped rules with those of `directories`, compiled to WebAssembly. Kept below CT_HOME by the digest of all sources and
 * the version of OPA. Throws POLICY_INVALID with OPA's own words if they do not compile, or REQUIREMENT_MISSING.
 */
export async function compilePolicy(
  directories: readonly string[],
  options: ToolOptions,
): Promise<{ readonly wasm: Uint8Array; readonly sourceDigest: string }> {
  const digest = sourceDigest(directories.flatMap((directory) => regoSources(directory)));
  const cache = join(options.ctHome, 'policy-cache');
  const kept = join(cache, `${digest}.wasm`);
  if (existsSync(kept)) return { wasm: readFileSync(kept), sourceDigest: digest };
  const opa = await findOpa(options);
  mkdirSync(cache, { recursive: true, mode: 0o700 });
  const work = mkdtempSync(join(cache, '.compile-'));
  try {
    options.progress?.('compiling the policy');
    const wasm = await compileTo(work, opa, directories, options.signal);
    writeFileSync(join(work, 'kept'), wasm, { mode: 0o600 });
    renameSync(join(work, 'kept'), kept);
    return { wasm, sourceDigest: digest };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Compiles the rules below `directories`, in the directory `work`. The same sources and OPA give the same bytes. */
export async function compileTo(
  work: string,
  opa: string,
  directories: readonly string[],
  signal?: AbortSignal,
): Promise<Uint8Array> {
  // The bytes contain the names of the files; copies below one directory have the same names everywhere.
  const rego = join(work, 'rego');
  for (const [index, directory] of directories.entries()) {
    for (const [number, source] of regoSources(directory).entries()) {
      mkdirSync(join(rego, String(index)), { recursive: true });
      const flat = `${String(number).padStart(4, '0')}-${source.name.replaceAll('/', '-')}`;
      writeFileSync(join(rego, String(index), flat), source.text, { mode: 0o600 });
    }
  }
  const bundle = join(work, 'bundle.tar.gz');
  const tool = {
    maxOutputBytes: MAX_TOOL_OUTPUT_BYTES,
    signal: limited(signal, COMPILE_TIMEOUT_MS),
    failureCode: 'POLICY_INVALID',
  } as const;
  await runProgram({
    ...tool,
    file: opa,
    args: [
      'build',
      '--target=wasm',
      ...ENTRYPOINTS.map((entry) => `--entrypoint=${entry}`),
      `--output=${bundle}`,
      rego,
    ],
    env: { HOME: work },
  });
  return runProgram({
    ...tool,
    file: 'tar',
    args: ['--extract', '--gzip', '--to-stdout', `--file=${bundle}`, '/policy.wasm'],
    maxOutputBytes: MAX_WASM_BYTES,
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
  const signal = limited(options.signal, TEST_TIMEOUT_MS);
  const child = spawn(opa, ['test', '--verbose', ...directories], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin', HOME: options.ctHome, LC_ALL: 'C' },
    signal,
    killSignal: 'SIGKILL',
  });
  const output = new BoundedTail(MAX_TEST_OUTPUT_BYTES);
  child.stdout.on('data', (chunk: Buffer) => output.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => output.push(chunk));
  const { promise, resolve, reject } = Promise.withResolvers<number | null>();
  child.once('error', reject);
  child.once('close', resolve);
  try {
    const status = await promise;
    return { passed: status === 0, output: output.text() };
  } catch (error) {
    if (options.signal?.aborted) throw new CtError('CANCELLED', 'the tests were cancelled', { cause: error });
    throw new CtError(
      'POLICY_INVALID',
      `the Rego tests did not end: ${signal.aborted ? 'they took too long' : 'opa could not be started'}`,
      { cause: error },
    );
  }
}

function limited(signal: AbortSignal | undefined, timeoutMs: number): AbortSignal {
  const timeout = AbortSignal.timeout(timeoutMs);
  return signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
}

function onPath(program: string, options: ToolOptions): string | undefined {
  const path = options.searchPath ?? process.env['PATH'] ?? '';
  return path
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
