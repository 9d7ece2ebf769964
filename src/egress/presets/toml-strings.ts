/**
 * The strings and booleans of a TOML 1.0 file by their dotted path: what is read of Cargo's configuration. Numbers, dates,
 * arrays and multi-line strings are passed over; a line that cannot be read gives no value. The file is the operator's.
 */

/** Path segments joined by NUL, which no TOML key of a file without control characters has. */
export type TomlStrings = ReadonlyMap<string, string | boolean>;

export function tomlPath(...segments: readonly string[]): string {
  return segments.join('\0');
}

/** Of a key; the settings that are wanted lie three deep. */
const MAX_DEPTH = 16;

const BARE = /^[A-Za-z0-9_-]+/;
const BASIC = /^"(?:[^"\\]|\\.)*"/;
const LITERAL = /^'[^']*'/;

export function readTomlStrings(text: string): TomlStrings {
  const values = new Map<string, string | boolean>();
  let table: readonly string[] = [];
  let inMultiLine: string | undefined;
  for (const raw of text.split(/\r?\n/)) {
    if (inMultiLine !== undefined) {
      if (raw.includes(inMultiLine)) inMultiLine = undefined;
      continue;
    }
    const line = raw.trim();
    if (line === '' || line.startsWith('#')) continue;
    if (line.startsWith('[')) {
      // An array of tables has no path of its own; what is in it is passed over.
      const header = line.startsWith('[[') ? undefined : keyOf(line.slice(1));
      table = header?.rest.startsWith(']') ? header.segments : ['\0'];
      continue;
    }
    const key = keyOf(line);
    if (key === undefined || !key.rest.startsWith('=')) continue;
    const value = key.rest.slice(1).trim();
    const opening = /^("""|''')/.exec(value)?.[1];
    if (opening !== undefined) {
      if (!value.slice(3).includes(opening)) inMultiLine = opening;
      continue;
    }
    readValue([...table, ...key.segments], value, values);
  }
  return values;
}

/** Sets what stands at the beginning of `text`; returns what follows it, or undefined if it cannot be read. */
function readValue(
  path: readonly string[],
  text: string,
  values: Map<string, string | boolean>,
): string | undefined {
  if (path.length > MAX_DEPTH) return undefined;
  const boolean = /^(true|false)\b/.exec(text)?.[1];
  if (boolean !== undefined) {
    values.set(tomlPath(...path), boolean === 'true');
    return text.slice(boolean.length).trim();
  }
  if (text.startsWith('{')) return readInlineTable(path, text.slice(1).trim(), values);
  const string = stringOf(text);
  if (string === undefined) return undefined;
  values.set(tomlPath(...path), string.value);
  return string.rest;
}

function readInlineTable(
  path: readonly string[],
  text: string,
  values: Map<string, string | boolean>,
): string | undefined {
  let rest = text;
  while (!rest.startsWith('}')) {
    const key = keyOf(rest);
    if (key === undefined || !key.rest.startsWith('=')) return undefined;
    const after = readValue([...path, ...key.segments], key.rest.slice(1).trim(), values);
    if (after === undefined) return undefined;
    rest = after.startsWith(',') ? after.slice(1).trim() : after;
    if (!after.startsWith(',') && !rest.startsWith('}')) return undefined;
  }
  return rest.slice(1).trim();
}

/** A dotted key and what follows it. */
function keyOf(text: string): { readonly segments: readonly string[]; readonly rest: string } | undefined {
  const segments: string[] = [];
  let rest = text.trim();
  for (;;) {
    const bare = BARE.exec(rest)?.[0];
    const string =
      bare === undefined ? stringOf(rest) : { value: bare, rest: rest.slice(bare.length).trim() };
    if (string === undefined) return undefined;
    segments.push(string.value);
    rest = string.rest;
    if (!rest.startsWith('.')) return { segments, rest };
    rest = rest.slice(1).trim();
  }
}

function stringOf(text: string): { readonly value: string; readonly rest: string } | undefined {
  const literal = LITERAL.exec(text)?.[0];
  if (literal !== undefined) {
    return { value: literal.slice(1, -1), rest: text.slice(literal.length).trim() };
  }
  const basic = BASIC.exec(text)?.[0];
  if (basic === undefined) return undefined;
  try {
    // The escapes of basic strings are those of JSON but for \U, \e and \x, which no URL or name needs.
    return { value: String(JSON.parse(basic)), rest: text.slice(basic.length).trim() };
  } catch {
    return undefined;
  }
}
