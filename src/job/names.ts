/** What jobs and steps are called. */
import { printable } from '../core/source-text.ts';
import { type Combination, combinationLabel } from './matrix.ts';

/** Step names are repeated on every line of some logs. */
const MAX_NAME_LENGTH = 100;

/** NAME_MAX of Linux, with room for what is appended while a directory is filled. */
const MAX_DIRECTORY_LENGTH = 120;

/** `test (node=20, os=debian)`; the id alone without a matrix. */
export function jobName(id: string, combination: Combination): string {
  const label = combinationLabel(combination);
  return label === '' ? id : `${id} (${label})`;
}

/**
 * A path component for a job's artifacts. Ids are safe as they are and hold no dot; where a matrix value had to
 * be changed or could be taken for two, a digest keeps it apart from others.
 */
export function directoryName(id: string, combination: Combination): string {
  const label = combinationLabel(combination);
  if (label === '') return id;
  const plain = `${id}.${label.replaceAll(', ', ',').replace(/[^\w.,=+-]/g, '_')}`;
  const exact = Object.values(combination).every((value) => /^[\w.+-]+$/.test(value));
  if (exact && plain.length <= MAX_DIRECTORY_LENGTH) return plain;
  // Loaded here, not above: it costs every `ct run` 4 ms, and few jobs have a matrix.
  const { createHash } = process.getBuiltinModule('node:crypto');
  const digest = createHash('sha256').update(JSON.stringify(combination)).digest('hex').slice(0, 8);
  return `${plain.slice(0, MAX_DIRECTORY_LENGTH - 9)}-${digest}`;
}

/** The first line with anything on it, safe to print. */
export function shortName(text: string): string {
  const line = printable((text.split('\n').find((candidate) => candidate.trim() !== '') ?? text).trim());
  return line.length > MAX_NAME_LENGTH ? `${line.slice(0, MAX_NAME_LENGTH - 1)}…` : line;
}
