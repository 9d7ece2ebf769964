/**
 * Why a failed step probably failed, and what to do about it.
 *
 * The output is the guest's: only its tail is searched, in lines of bounded length, and what is
 * repeated from it in a hint is limited to the characters of names.
 */
import type { NetworkRequest } from '../protocol/network.ts';
import { networkHint } from './network-hint.ts';
import { formatSizeMib } from './quantity.ts';

/** Errors stand at the end of the output. */
const MAX_TAIL_BYTES = 16_384;

/** A line beyond this is data, not a message. */
const MAX_LINE_LENGTH = 2000;

/** Signal 9: what the kernel's out-of-memory killer sends. */
const KILLED = 128 + 9;
const NOT_FOUND = 127;
const ENOENT = 2;
const EACCES = 13;
const ENOEXEC = 8;

export interface FailedStep {
  /** Last bytes of its stdout and stderr; guest-controlled. Only the last 16 KiB are looked at. */
  readonly output: Uint8Array;
  /** 128 + signal if it was killed, 127 not found, 126 not executable. */
  readonly exitCode: number;
  readonly oomKilled: boolean;
  /** Name of the image, for messages. */
  readonly image: string;
  readonly memoryMib: number;
  readonly diskMib?: number;
  /** What the step may connect to; absent: nothing. */
  readonly network?: NetworkRequest;
  /** The step's program itself could not be started. */
  readonly startError?: { readonly errno: number; readonly program: string };
}

/** Characters of names of programs, packages and hosts; nothing else of the output gets into a hint. */
const NAME = '[A-Za-z0-9@][A-Za-z0-9@._+/-]{0,99}';

interface Rule {
  readonly pattern: RegExp;
  readonly hint: (match: RegExpExecArray, step: FailedStep, lines: readonly string[]) => string | undefined;
}

const network: Rule['hint'] = (match, step, lines) => networkHint(match.input, lines, step.network);

const immutable = (_: unknown, step: FailedStep): string =>
  `the system of the VM cannot be changed by a job: put the package into an image definition that extends ` +
  `\`${step.image}\` and build it with \`ct image build\``;

const diskFull = (_: unknown, step: FailedStep): string =>
  `the workspace volume${step.diskMib === undefined ? '' : ` of ${formatSizeMib(step.diskMib)}`} is full: raise ` +
  '`resources.disk` of the job';

const missing = (program: string, step: FailedStep): string =>
  `the image \`${step.image}\` has no \`${program}\`: put the package that brings it into an image definition`;

/** The first rule that matches any line wins; rules are ordered from the cause to its consequences. */
const RULES: readonly Rule[] = [
  // -- disk: anything may fail in its wake
  { pattern: /No space left on device|\bENOSPC\b|Disk quota exceeded/i, hint: diskFull },
  // -- the root: apt complains about its locks before it gets to the network
  { pattern: /\bsudo: (?:command )?not found\b|: sudo: not found/, hint: immutable },
  {
    pattern: /\bsudo: .*(?:effective uid is not 0|no new privileges|a password is required|must be setuid)/,
    hint: immutable,
  },
  {
    pattern: /\/var\/(?:lib\/(?:dpkg|apt)|cache\/apt)\/.*(?:Permission denied|Read-only file system)/,
    hint: immutable,
  },
  {
    pattern: /(?:Permission denied|Read-only file system).*\/var\/(?:lib\/(?:dpkg|apt)|cache\/apt)\//,
    hint: immutable,
  },
  {
    pattern: /(?:Unable to acquire the dpkg|requested operation requires superuser privilege|are you root\?)/,
    hint: immutable,
  },
  {
    pattern: /externally-managed-environment/,
    hint: () =>
      'Python packages of the image belong to it: install into a virtual environment in the workspace (`python3 -m venv`), or put the package into an image definition',
  },
  {
    pattern: /\bRead-only file system\b|\bEROFS\b/,
    hint: () =>
      'the system of the VM is read-only: write to the workspace, `$HOME` or `/tmp`, or put what is needed into an image definition',
  },
  {
    pattern: /EACCES: permission denied, (?:mkdir|open|rename|symlink|access) '\/(?:usr|opt|etc|var)\//,
    hint: () =>
      'steps run as a user without privileges: install below the workspace or `$HOME`, or put it into an image definition',
  },
  // -- network
  { pattern: /Could not resolve (?:host|hostname|proxy)/i, hint: network },
  { pattern: /Temporary failure in name resolution|Temporary failure resolving/, hint: network },
  { pattern: /Name or service not known|nodename nor servname|getaddrinfo failed/, hint: network },
  {
    pattern:
      /\bEAI_AGAIN\b|\bgetaddrinfo ENOTFOUND\b|\bENETUNREACH\b|\bEHOSTUNREACH\b|\bERR_SOCKET_TIMEOUT\b/,
    hint: network,
  },
  {
    pattern:
      /\bnpm (?:ERR!|error) (?:code|errno) (?:ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT)/,
    hint: network,
  },
  // A connection that is refused when what is said on it is known: it was open by then.
  { pattern: /\bcurl: \((?:35|52|56)\) .*(?:reset by peer|SSL_ERROR_SYSCALL|Empty reply)/, hint: network },
  { pattern: /Failed to establish a new connection|NewConnectionError/, hint: network },
  { pattern: /Network is unreachable|No route to host|unable to access 'https?:/i, hint: network },
  {
    pattern: /\bdial (?:tcp|udp)\b.*(?:lookup|no such host|connect: |i\/o timeout|network is unreachable)/,
    hint: network,
  },
  {
    pattern: /spurious network error|failed to download from `https?:|\[6\] Could(?:n't| not) resolve host/i,
    hint: network,
  },
  { pattern: /dns error: failed to lookup address|failed to lookup address information/, hint: network },
  { pattern: /wget: unable to resolve host|unable to resolve host address/, hint: network },
  { pattern: /java\.net\.UnknownHostException/, hint: network },
  // -- a program that is not there
  {
    pattern: new RegExp(`(?:^|: )(${NAME}): (?:command )?not found\\s*$`),
    hint: (match, step) => missing(match[1] as string, step),
  },
  {
    pattern: new RegExp(`\\benv: ['‘]?(${NAME})['’]?: No such file or directory`),
    hint: (match, step) => missing(match[1] as string, step),
  },
  {
    pattern: new RegExp(`^make: (${NAME}): No such file or directory`),
    hint: (match, step) => missing(match[1] as string, step),
  },
  {
    pattern: new RegExp(`exec: "(${NAME})": executable file not found`),
    hint: (match, step) => missing(match[1] as string, step),
  },
  {
    pattern: new RegExp(`\\bspawn (${NAME}) ENOENT\\b`),
    hint: (match, step) => missing(match[1] as string, step),
  },
  {
    pattern: new RegExp(`linker \`(${NAME})\` not found`),
    hint: (match, step) => missing(match[1] as string, step),
  },
  // -- memory, as programs report it that catch it themselves
  {
    pattern:
      /JavaScript heap out of memory|Cannot allocate memory|\bstd::bad_alloc\b|virtual memory exhausted|java\.lang\.OutOfMemoryError|^MemoryError$/,
    hint: (_, step) => outOfMemory(step),
  },
];

/** One or two sentences for the user, or undefined if nothing known matches. Never throws. */
export function hintFor(step: FailedStep): string | undefined {
  if (step.oomKilled) return outOfMemory(step);
  if (step.startError !== undefined) return startHint(step.startError, step);
  const tail = Buffer.from(step.output.buffer, step.output.byteOffset, step.output.byteLength)
    .subarray(-MAX_TAIL_BYTES)
    .toString('utf8');
  const lines = tail
    .split(/[\r\n]+/)
    .filter((line) => line !== '' && line.length <= MAX_LINE_LENGTH)
    .map(withoutEscapes);
  for (const { pattern, hint } of RULES) {
    for (const line of lines) {
      const match = pattern.exec(line);
      const found = match === null ? undefined : hint(match, step, lines);
      if (found !== undefined) return found;
    }
  }
  if (step.exitCode === KILLED) {
    return `the step was killed by signal 9; if it needs more than ${formatSizeMib(step.memoryMib)} of memory, raise \`resources.memory\``;
  }
  if (step.exitCode === NOT_FOUND) {
    return `exit code 127 mostly means that a program is missing: put it into an image definition that extends \`${step.image}\``;
  }
  return undefined;
}

function outOfMemory(step: FailedStep): string {
  return (
    `the job ran out of memory, it has ${formatSizeMib(step.memoryMib)}: raise \`resources.memory\` of the job, ` +
    'or let the step do less at a time'
  );
}

function startHint(
  error: { readonly errno: number; readonly program: string },
  step: FailedStep,
): string | undefined {
  const program = new RegExp(`^[./]{0,3}${NAME}$`).test(error.program) ? error.program : 'the program';
  if (error.errno === ENOENT) {
    return program.includes('/')
      ? `\`${program}\` is neither in the image \`${step.image}\` nor in the tree that was sent; what .gitignore leaves out is not sent (\`--no-ignore\` sends all)`
      : missing(program, step);
  }
  if (error.errno === EACCES)
    return `\`${program}\` is not executable: \`chmod +x\` it, or call its interpreter`;
  if (error.errno === ENOEXEC) return `\`${program}\` has no \`#!\` line and is no program for this machine`;
  return undefined;
}

/** Colour and the like, so that a coloured message still matches. */
function withoutEscapes(line: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences begin with a control character
  return line.replace(/\u001b\[[0-9;?]{0,20}[A-Za-z]/g, '');
}
