/**
 * A file of several secrets, as shells and many tools write it:
 *
 *     # a comment
 *     NAME=value without white space
 *     export OTHER="quoted: \n \t \" \\ \$ are escapes; may go over several lines"
 *     THIRD='quoted: as it is, over several lines'
 *
 * Stricter than those tools: what they read in different ways is refused. Errors name the line and show nothing of it.
 */
import { CtError } from '../core/errors.ts';
import { isSecretName } from '../protocol/secret-record.ts';

const ESCAPES: ReadonlyMap<string, string> = new Map([
  ['n', '\n'],
  ['r', '\r'],
  ['t', '\t'],
  ['"', '"'],
  ['\\', '\\'],
  ['$', '$'],
]);

/** Throws SECRET_SOURCE_FAILED with the name of the file and the line. */
export function parseSecretsFile(text: string, fileName: string): ReadonlyMap<string, string> {
  return new Parser(text, fileName).parse();
}

class Parser {
  readonly #text: string;
  readonly #fileName: string;
  readonly #values = new Map<string, string>();
  #at = 0;

  constructor(text: string, fileName: string) {
    this.#text = text;
    this.#fileName = fileName;
  }

  parse(): ReadonlyMap<string, string> {
    while (this.#at < this.#text.length) {
      if (this.#match(/[ \t]*(#[^\n]*)?(\r?\n|$)/y) !== undefined) continue;
      const start = this.#at;
      const name = this.#match(/[ \t]*(?:export[ \t]+)?([^\s=]+)=/y)?.[1];
      if (name === undefined || !isSecretName(name)) this.#fail(start, 'expected NAME=VALUE');
      if (this.#values.has(name)) this.#fail(start, `\`${name}\` is given twice`);
      this.#values.set(name, this.#value(start));
    }
    return this.#values;
  }

  #value(start: number): string {
    const quoted = this.#match(/'([^']*)'/y)?.[1] ?? this.#doubleQuoted(start);
    if (quoted === undefined) {
      if (/['"]/.test(this.#text[this.#at] ?? '')) this.#fail(start, 'the quotes are not closed');
      const bare = this.#match(/([^\s'"]*)[ \t]*(?:\r?\n|$)/y)?.[1];
      return bare ?? this.#fail(start, 'a value with white space or quotes in it has to be quoted');
    }
    if (this.#match(/[ \t]*(#[^\n]*)?(\r?\n|$)/y) === undefined) {
      this.#fail(start, 'something follows the closing quotes');
    }
    return quoted;
  }

  #doubleQuoted(start: number): string | undefined {
    const inner = this.#match(/"((?:[^"\\]|\\[\s\S])*)"/y)?.[1];
    return inner?.replaceAll(
      /\\([\s\S])/g,
      (_, character: string) =>
        ESCAPES.get(character) ?? this.#fail(start, 'unknown escape; `\\\\` stands for a backslash'),
    );
  }

  /** A sticky pattern at the current place; moves behind it. */
  #match(pattern: RegExp): RegExpExecArray | undefined {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (match === null) return undefined;
    this.#at += match[0].length;
    return match;
  }

  #fail(at: number, why: string): never {
    const line = this.#text.slice(0, at).split('\n').length;
    throw new CtError('SECRET_SOURCE_FAILED', `${this.#fileName}:${line}: ${why}`, {
      hint: 'each line is NAME=VALUE, NAME=\'VALUE\' or NAME="VALUE"; docs/secrets.md has the rules',
    });
  }
}
