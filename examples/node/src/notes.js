import semver from 'semver';
import { KINDS } from './change.js';

/**
 * The version after `current` with these changes: the largest of them decides. Without changes it stays.
 *
 * @param {string} current
 * @param {readonly { kind: keyof typeof KINDS }[]} changes
 */
export function nextVersion(current, changes) {
  if (!semver.valid(current)) throw new Error(`${current} is not a version`);
  const largest = Object.keys(KINDS).find((kind) => changes.some((change) => change.kind === kind));
  return largest === undefined ? current : semver.inc(current, KINDS[largest].raises);
}

/**
 * Markdown for one version: its changes by kind, in the order they are given.
 *
 * @param {string} version
 * @param {readonly { kind: keyof typeof KINDS, text: string }[]} changes
 */
export function releaseNotes(version, changes) {
  const sections = Object.entries(KINDS).flatMap(([kind, { title }]) => {
    const items = changes.filter((change) => change.kind === kind);
    return items.length === 0 ? [] : [`### ${title}\n\n${items.map(({ text }) => `- ${text}`).join('\n')}\n`];
  });
  return [`## ${version}\n`, ...(sections.length === 0 ? ['No changes.\n'] : sections)].join('\n');
}
