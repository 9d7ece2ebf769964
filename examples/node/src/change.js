import { parse } from 'yaml';

/** Kinds of changes, in the order of the notes; each raises this part of the version. */
export const KINDS = {
  breaking: { title: 'Breaking changes', raises: 'major' },
  added: { title: 'Added', raises: 'minor' },
  fixed: { title: 'Fixed', raises: 'patch' },
};

/**
 * Reads a change file. Throws an error that names the file if it is not a mapping of `kind` and `text`.
 *
 * @param {string} file name, for messages
 * @param {string} source YAML
 * @returns {{ kind: keyof typeof KINDS, text: string }}
 */
export function parseChange(file, source) {
  const change = parse(source);
  const kinds = Object.keys(KINDS);
  if (!kinds.includes(change?.kind)) throw new Error(`${file}: kind must be one of ${kinds.join(', ')}`);
  if (typeof change.text !== 'string' || change.text.trim() === '') throw new Error(`${file}: text is missing`);
  return { kind: change.kind, text: change.text.trim() };
}
