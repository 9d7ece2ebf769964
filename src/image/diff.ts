/** What is different between two images, or between the locks of two. */
import type { InventoryFile } from './inventory.ts';
import type { ImageLock } from './lock-file.ts';
import { diffPackages, type PackageDifference, type VersionedPackage } from './package-diff.ts';
import { doesCount, findingKey, type JudgedFinding } from './scan/result.ts';
import { compareSemver } from './scan/semver.ts';

/** One side of a comparison, as far as it is known: a lock has no files and no size. */
export interface DiffSide {
  /** How messages call it. */
  readonly label: string;
  readonly packages: readonly VersionedPackage[];
  readonly npm: readonly VersionedPackage[];
  readonly kernel: string | undefined;
  /** Digest of its sources; of a lock. */
  readonly guestAgent?: string;
  /** Digest; of an image. */
  readonly initramfs?: string;
  readonly sizeBytes?: number;
  readonly files?: readonly InventoryFile[];
  /** What is known of it, where there is a database of vulnerabilities. */
  readonly findings?: readonly JudgedFinding[];
}

export interface ImageDiff {
  readonly from: string;
  readonly to: string;
  readonly packages: readonly PackageDifference[];
  readonly npm: readonly PackageDifference[];
  readonly kernel?: { readonly from: string; readonly to: string };
  readonly guestAgentChanged: boolean;
  readonly initramfsChanged: boolean;
  readonly sizeBytes?: { readonly from: number; readonly to: number };
  readonly files?: {
    readonly added: readonly string[];
    readonly removed: readonly string[];
    readonly changed: readonly string[];
  };
  readonly vulnerabilities?: VulnerabilityDifference;
}

/** Of those that nobody has accepted. */
interface VulnerabilityDifference {
  readonly added: readonly JudgedFinding[];
  readonly removed: readonly JudgedFinding[];
  readonly remaining: number;
}

export function lockSide(lock: ImageLock, label: string): DiffSide {
  return {
    label,
    packages: lock.packages,
    npm: lock.npm,
    kernel: `${lock.kernel.name} ${lock.kernel.version}`,
    guestAgent: lock.guestAgent,
  };
}

export function diffSides(from: DiffSide, to: DiffSide): ImageDiff {
  const bothKernels = from.kernel !== undefined && to.kernel !== undefined && from.kernel !== to.kernel;
  const bothSizes = from.sizeBytes !== undefined && to.sizeBytes !== undefined;
  return {
    from: from.label,
    to: to.label,
    packages: diffPackages(from.packages, to.packages),
    npm: diffPackages(from.npm, to.npm, compareSemver),
    ...(bothKernels ? { kernel: { from: from.kernel, to: to.kernel } } : {}),
    guestAgentChanged: differ(from.guestAgent, to.guestAgent),
    initramfsChanged: differ(from.initramfs, to.initramfs),
    ...(bothSizes ? { sizeBytes: { from: from.sizeBytes, to: to.sizeBytes } } : {}),
    ...(from.files && to.files ? { files: diffFiles(from.files, to.files) } : {}),
    ...(from.findings && to.findings ? { vulnerabilities: diffFindings(from.findings, to.findings) } : {}),
  };
}

/** A finding is the same in another version of its package. */
function diffFindings(from: readonly JudgedFinding[], to: readonly JudgedFinding[]): VulnerabilityDifference {
  const [before, after] = [from, to].map(
    (list) => new Map(list.filter(doesCount).map((finding) => [findingKey(finding), finding])),
  );
  const only = (own: typeof before, other: typeof before): JudgedFinding[] =>
    [...(own ?? [])].flatMap(([key, finding]) => (other?.has(key) ? [] : [finding]));
  const added = only(after, before);
  return { added, removed: only(before, after), remaining: (after?.size ?? 0) - added.length };
}

/** What is not known on one side does not differ. */
function differ(from: string | undefined, to: string | undefined): boolean {
  return from !== undefined && to !== undefined && from !== to;
}

export function isSame(diff: ImageDiff): boolean {
  const { packages, npm, kernel, guestAgentChanged, initramfsChanged, files, vulnerabilities } = diff;
  const known = (vulnerabilities?.added.length ?? 0) + (vulnerabilities?.removed.length ?? 0);
  const changedFiles =
    files === undefined ? 0 : files.added.length + files.removed.length + files.changed.length;
  return (
    packages.length + npm.length + changedFiles + known === 0 &&
    kernel === undefined &&
    !guestAgentChanged &&
    !initramfsChanged
  );
}

function diffFiles(
  from: readonly InventoryFile[],
  to: readonly InventoryFile[],
): NonNullable<ImageDiff['files']> {
  const [before, after] = [from, to].map(
    (list) => new Map(list.map((entry) => [entry.path, identity(entry)])),
  );
  const added: string[] = [];
  const changed: string[] = [];
  for (const [path, now] of after ?? []) {
    const old = before?.get(path);
    if (old === undefined) added.push(path);
    else if (old !== now) changed.push(path);
  }
  return { added, removed: [...(before?.keys() ?? [])].filter((path) => !after?.has(path)), changed };
}

function identity({ type, mode, uid, gid, sha256, target }: InventoryFile): string {
  return [type, mode, uid, gid, sha256 ?? target ?? ''].join(' ');
}

// ----------------------------------------------------------------------------------------------- Markdown

/** A comment of a pull request has 65,536 characters at most, and nobody reads as many rows. */
const MAX_ROWS = 200;
const MAX_FILES = 50;

/** For a pull request. Names and versions were checked where they were read; they are shown as code all the same. */
export function diffMarkdown(diff: ImageDiff, formatBytes: (bytes: number) => string): string {
  const { packages, npm, kernel, guestAgentChanged, initramfsChanged, sizeBytes, files, vulnerabilities } =
    diff;
  const lines = [`### Image: ${code(diff.from)} → ${code(diff.to)}`, ''];
  if (isSame(diff)) return `${[...lines, 'No difference.'].join('\n')}\n`;
  const count = (change: (entry: PackageDifference) => boolean): number =>
    [...packages, ...npm].filter(change).length;
  const added = count(({ change }) => change === 'added');
  const removed = count(({ change }) => change === 'removed');
  lines.push(
    `Packages: ${added} added, ${removed} removed, ${packages.length + npm.length - added - removed} changed.${
      sizeBytes ? ` Size: ${sizeText(sizeBytes, formatBytes)}.` : ''
    }`,
  );
  if (kernel) lines.push('', `Kernel: ${code(kernel.from)} → ${code(kernel.to)}`);
  if (guestAgentChanged) lines.push('', 'The guest agent is another.');
  if (initramfsChanged) lines.push('', 'The initramfs (guest agent and kernel modules) is another.');
  lines.push(...table('Package', packages), ...table('npm package', npm));
  if (vulnerabilities) lines.push(...vulnerabilityLines(vulnerabilities));
  if (files) {
    for (const [what, paths] of Object.entries(files)) lines.push(...fileList(what, paths));
  }
  return `${lines.join('\n')}\n`;
}

function sizeText(
  { from, to }: { from: number; to: number },
  formatBytes: (bytes: number) => string,
): string {
  if (from === to) return `${formatBytes(to)}, as before`;
  return `${formatBytes(from)} → ${formatBytes(to)} (${to > from ? '+' : '−'}${formatBytes(Math.abs(to - from))})`;
}

function table(title: string, rows: readonly PackageDifference[]): readonly string[] {
  if (rows.length === 0) return [];
  const shown = rows.slice(0, MAX_ROWS).map(({ name, change, from, to }) => {
    const cell = (text: string | undefined): string => (text === undefined ? '' : code(text));
    return `| ${code(name)} | ${change} | ${cell(from)} | ${cell(to)} |`;
  });
  const more = rows.length > MAX_ROWS ? ['', `… and ${rows.length - MAX_ROWS} more.`] : [];
  return ['', `| ${title} | Change | From | To |`, '|---|---|---|---|', ...shown, ...more];
}

function vulnerabilityLines({ added, removed, remaining }: VulnerabilityDifference): readonly string[] {
  const rows = [
    ...added.map((finding) => ['new', finding] as const),
    ...removed.map((finding) => ['gone', finding] as const),
  ];
  const sum = `Vulnerabilities: ${added.length} new, ${removed.length} gone, ${remaining} as before.`;
  if (rows.length === 0) return ['', sum];
  const shown = rows.slice(0, MAX_ROWS).map(([change, { id, severity, package: entry, fixedIn }]) => {
    const fix = fixedIn === undefined ? '' : code(fixedIn);
    return `| ${code(id)} | ${change} | ${severity} | ${code(entry.name)} ${code(entry.version)} | ${fix} |`;
  });
  const more = rows.length > MAX_ROWS ? ['', `… and ${rows.length - MAX_ROWS} more.`] : [];
  const head = ['| Vulnerability | Change | Severity | Package | Fixed in |', '|---|---|---|---|---|'];
  return ['', sum, '', ...head, ...shown, ...more];
}

function fileList(what: string, paths: readonly string[]): readonly string[] {
  if (paths.length === 0) return [];
  const shown = paths.slice(0, MAX_FILES).map((path) => `- ${code(path)}`);
  const more = paths.length > MAX_FILES ? [`- … and ${paths.length - MAX_FILES} more`] : [];
  return [
    '',
    `<details><summary>${paths.length} files ${what}</summary>`,
    '',
    ...shown,
    ...more,
    '',
    '</details>',
  ];
}

/** Names of files may hold anything: no backtick ends the code, no pipe the cell, no line break the line. */
function code(text: string): string {
  return `\`${text.replaceAll(/[`|\p{Cc}]/gu, '?')}\``;
}
