/** Values of secrets in a process of ours: in buffers that can be wiped, in an object that nothing prints. */
import { inspect } from 'node:util';
import { CtError } from '../core/errors.ts';
import {
  MAX_JOB_SECRETS,
  MAX_JOB_SECRETS_BYTES,
  MAX_SECRET_BYTES,
  MIN_SECRET_CHARACTERS,
} from '../protocol/limits.ts';

const TOO_LARGE_HINT = 'keep large data encrypted in the repository, and only its key as a secret';

export class SecretValues implements Disposable {
  readonly #values = new Map<string, Buffer>();
  #bytes = 0;

  /**
   * Takes `value` over: it is wiped with this object, or at once if it is refused. Throws SECRET_UNUSABLE, which names
   * the secret and says nothing of its value.
   */
  add(name: string, value: Buffer): void {
    const wrong = wrongValue(value);
    const together = this.#bytes + value.length;
    const tooMany = together > MAX_JOB_SECRETS_BYTES || this.#values.size === MAX_JOB_SECRETS;
    if (wrong !== undefined || tooMany) {
      value.fill(0);
      const message = wrong
        ? `the value of the secret \`${name}\` ${wrong.message}`
        : `the secrets of the job are more than ${MAX_JOB_SECRETS}, or larger than ${MAX_JOB_SECRETS_BYTES} bytes together`;
      throw new CtError('SECRET_UNUSABLE', message, { hint: wrong?.hint ?? TOO_LARGE_HINT });
    }
    this.#values.get(name)?.fill(0);
    this.#values.set(name, value);
    this.#bytes = together;
  }

  /** As it was given. The caller must not change or keep it. */
  get(name: string): Buffer {
    const value = this.#values.get(name);
    if (value === undefined) throw new CtError('HOST_PROTOCOL', `the secret \`${name}\` was not sent`);
    return value;
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  names(): readonly string[] {
    return [...this.#values.keys()];
  }

  [Symbol.dispose](): void {
    for (const value of this.#values.values()) value.fill(0);
    this.#values.clear();
  }

  toJSON(): string {
    return this.#describe();
  }

  [inspect.custom](): string {
    return this.#describe();
  }

  #describe(): string {
    return `SecretValues(${this.names().join(', ')})`;
  }
}

function wrongValue(value: Buffer): { readonly message: string; readonly hint: string } | undefined {
  if (value.length > MAX_SECRET_BYTES) {
    return { message: `is longer than ${MAX_SECRET_BYTES} bytes`, hint: TOO_LARGE_HINT };
  }
  if (value.includes(0)) {
    return { message: 'has a NUL byte', hint: 'encode it, for example in base64, and decode it in the job' };
  }
  if (value.every((byte) => byte <= 0x20)) {
    return { message: 'is blank', hint: 'give it a value' };
  }
  if (withoutFinalNewline(value).length < MIN_SECRET_CHARACTERS) {
    return {
      message: `has fewer than ${MIN_SECRET_CHARACTERS} characters`,
      hint: 'so short a value cannot be hidden in logs, nor is it a secret; pass it with -e if it is none',
    };
  }
  return undefined;
}

/** Files and commands end their output with a newline that no variable should have. A view, not a copy. */
export function withoutFinalNewline(value: Buffer): Buffer {
  if (value.at(-1) !== 0x0a) return value;
  return value.subarray(0, value.at(-2) === 0x0d ? -2 : -1);
}

export function isMultiLine(value: Buffer): boolean {
  return value.includes(0x0a);
}

/** Lines without the white space around them; views, not copies. */
export function linesOf(value: Buffer): Buffer[] {
  const lines: Buffer[] = [];
  for (let start = 0; start <= value.length; ) {
    const newline = value.indexOf(0x0a, start);
    const end = newline === -1 ? value.length : newline;
    let [from, to] = [start, end];
    while (from < to && (value[from] as number) <= 0x20) from++;
    while (to > from && (value[to - 1] as number) <= 0x20) to--;
    lines.push(value.subarray(from, to));
    start = end + 1;
  }
  return lines;
}
