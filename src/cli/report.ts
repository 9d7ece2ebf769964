/**
 * The file of `ct doctor --report`: what a maintainer needs to see, and nothing that is secret. No environment, no host
 * name, no command lines, nothing of jobs; the directories of the user are written as `~` and `$CT_HOME`.
 */
import { closeSync, constants, fstatSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { buildId, installRoot } from '../core/install.ts';
import { VERSION } from '../core/version.ts';
import type { Diagnosis } from './checks.ts';
import { formatDiagnosis } from './render/diagnosis.ts';
import { UNSTYLED } from './render/format.ts';

const LOG_LINES = 60;
/** Of the log's end: enough for that many lines. */
const LOG_BYTES = 16 * 1024;

/** Writes the report to a new file that only its owner may read. Throws USAGE if it exists or cannot be made. */
export function writeReport(file: string, diagnosis: Diagnosis, ctHome: string): void {
  try {
    writeFileSync(file, formatReport(diagnosis, ctHome), { flag: 'wx', mode: 0o600 });
  } catch (error) {
    const exists = (error as NodeJS.ErrnoException).code === 'EEXIST';
    throw new CtError('USAGE', exists ? `${file} exists` : `${file} cannot be written: ${messageOf(error)}`, {
      hint: 'name a file that does not exist yet, in a directory of yours',
      cause: error,
    });
  }
}

export function formatReport(diagnosis: Diagnosis, ctHome: string): string {
  const sections: [string, string][] = [
    ['ct', `version ${VERSION}, build ${buildId()}, Node.js ${process.versions.node}`],
    ['checks', formatDiagnosis(diagnosis, UNSTYLED)],
    ['accelerator verdict', readOr(join(ctHome, 'accelerator.json'), 'none stored')],
    ['kernel', readOr('/proc/version', 'unknown')],
    ['cpu', cpu()],
    ['cgroups in use', cgroups(diagnosis)],
    ['cgroup of this process', readOr('/proc/self/cgroup', 'none')],
    ['cgroup mounts', cgroupMounts()],
    [`host daemon, last ${LOG_LINES} lines`, lastLines(join(ctHome, 'host.log'))],
  ];
  const text = sections.map(([title, body]) => `## ${title}\n\n${body.trim()}\n`).join('\n');
  return `# Report of ct doctor, ${new Date().toISOString()}\n\n${shorten(text, ctHome)}`;
}

/** The longest first: CT_HOME usually lies in the home directory. */
function shorten(text: string, ctHome: string): string {
  const names: [string, string][] = [
    [resolve(ctHome), '$CT_HOME'],
    [installRoot, '$CT'],
    [homedir(), '~'],
  ];
  return names
    .filter(([path]) => path !== '/')
    .sort(([a], [b]) => b.length - a.length)
    .reduce((shortened, [path, name]) => shortened.replaceAll(path, name), text);
}

function cpu(): string {
  const fields = ['model name', 'microcode', 'flags'];
  return fields
    .map((field) => new RegExp(`^${field}\\s*: (.*)$`, 'm').exec(readOr('/proc/cpuinfo', ''))?.[0])
    .filter((line) => line !== undefined)
    .join('\n');
}

function cgroups({ cgroups: { isInUse, statuses } }: Diagnosis): string {
  const lines = statuses.map(({ controller, version, directory, reason }) =>
    version === undefined ? `${controller}: none: ${reason}` : `${controller}: v${version} in ${directory}`,
  );
  return [isInUse ? 'by the running daemon:' : 'by a daemon that would be started from here:', ...lines].join(
    '\n',
  );
}

function cgroupMounts(): string {
  return readOr('/proc/self/mountinfo', '')
    .split('\n')
    .filter((line) => / - cgroup2? /.test(line))
    .join('\n');
}

function lastLines(path: string): string {
  let descriptor: number;
  try {
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch {
    return 'no log';
  }
  try {
    const { size } = fstatSync(descriptor);
    const bytes = Buffer.alloc(Math.min(size, LOG_BYTES));
    readSync(descriptor, bytes, 0, bytes.length, size - bytes.length);
    const text = bytes.toString('utf8').replaceAll(/[^\n\t\x20-\x7e\xa0-\uffff]/g, '');
    return text.trim() === '' ? 'empty' : text.trim().split('\n').slice(-LOG_LINES).join('\n');
  } finally {
    closeSync(descriptor);
  }
}

function readOr(path: string, fallback: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return fallback;
  }
}
