/**
 * The forms in which a secret turns up in output: itself, each of its lines, and what common tools make of it. Works
 * on bytes throughout: a string could not be wiped afterwards.
 */
import { isMultiLine, linesOf, withoutFinalNewline } from './secret-values.ts';

/** A shorter form would hide ordinary output. */
export const MIN_PATTERN_BYTES = 4;

const BASE64 = Buffer.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/');
const BASE64_URL = Buffer.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_');
/** Where base64(1) and openssl(1) break lines. */
const BASE64_COLUMNS = [76, 64];
const HEX_LOWER = Buffer.from('0123456789abcdef');
const HEX_UPPER = Buffer.from('0123456789ABCDEF');
const NEWLINE = Buffer.from('\n');

/** Everything that is masked for one value. */
export function maskPatterns(value: Uint8Array): Buffer[] {
  const whole = withoutFinalNewline(Buffer.from(value));
  const patterns = [
    whole,
    ...(isMultiLine(whole) ? linesOf(whole) : []),
    ...base64Forms(whole),
    hex(whole, HEX_LOWER),
    hex(whole, HEX_UPPER),
    ...urlForms(whole),
    ...jsonForms(whole),
    shellQuoted(whole),
  ];
  return patterns.filter((pattern) => pattern.length >= MIN_PATTERN_BYTES);
}

function base64Forms(value: Buffer): Buffer[] {
  const forms: Buffer[] = [];
  // What `echo` and a file hand to an encoder ends with a newline.
  const line = Buffer.concat([value, NEWLINE]);
  for (const alphabet of [BASE64, BASE64_URL]) {
    // Behind one or two other bytes all characters are different ones.
    for (const before of [0, 1, 2]) forms.push(base64Inside(value, before, alphabet));
    for (const bytes of [value, line]) {
      const padded = base64(bytes, alphabet);
      forms.push(padded, padded.subarray(0, Math.ceil((bytes.length * 8) / 6)));
      if (alphabet === BASE64) for (const columns of BASE64_COLUMNS) forms.push(...wrapped(padded, columns));
    }
  }
  return forms;
}

/** The characters that `value` alone decides when `before` bytes precede it in a group of three, and any follow. */
function base64Inside(value: Buffer, before: number, alphabet: Buffer): Buffer {
  const padded = base64(Buffer.concat([Buffer.alloc(before), value]), alphabet);
  return padded.subarray(Math.ceil((before * 8) / 6), Math.floor(((before + value.length) * 8) / 6));
}

/** RFC 4648, sections 4 and 5, with padding. */
function base64(bytes: Buffer, alphabet: Buffer): Buffer {
  const result = Buffer.alloc(Math.ceil(bytes.length / 3) * 4, '=');
  const characters = Math.ceil((bytes.length * 8) / 6);
  for (let index = 0; index < characters; index++) {
    const bit = index * 6;
    const pair = ((bytes[bit >> 3] ?? 0) << 8) | (bytes[(bit >> 3) + 1] ?? 0);
    result[index] = alphabet[(pair >> (10 - (bit & 7))) & 63] as number;
  }
  return result;
}

function wrapped(text: Buffer, columns: number): Buffer[] {
  const lines: Buffer[] = [];
  if (text.length <= columns) return lines;
  for (let at = 0; at < text.length; at += columns) lines.push(text.subarray(at, at + columns));
  return lines;
}

function hex(bytes: Buffer, digits: Buffer): Buffer {
  const result = Buffer.alloc(bytes.length * 2);
  for (const [index, byte] of bytes.entries()) {
    result[2 * index] = digits[byte >> 4] as number;
    result[2 * index + 1] = digits[byte & 15] as number;
  }
  return result;
}

/** RFC 3986: the strict form, what encodeURIComponent leaves alone, what Python's quote does, and that of HTML forms. */
function urlForms(value: Buffer): Buffer[] {
  const forms: Buffer[] = [];
  for (const digits of [HEX_UPPER, HEX_LOWER]) {
    for (const safe of ['-._~', "-._~!'()*", '-._~/']) forms.push(percentEncoded(value, safe, digits));
    forms.push(percentEncoded(value, '-._* ', digits).map((byte) => (byte === 0x20 ? 0x2b : byte)) as Buffer);
  }
  return forms;
}

function percentEncoded(value: Buffer, safe: string, digits: Buffer): Buffer {
  const isSafe = (byte: number): boolean =>
    (byte >= 0x30 && byte <= 0x39) ||
    (byte >= 0x41 && byte <= 0x5a) ||
    (byte >= 0x61 && byte <= 0x7a) ||
    safe.includes(String.fromCharCode(byte));
  return rewritten(value, 3, (byte, put) => {
    if (isSafe(byte)) put(byte);
    else put(0x25, digits[byte >> 4] as number, digits[byte & 15] as number);
  });
}

const JSON_SHORT = new Map([
  [0x08, 'b'],
  [0x09, 't'],
  [0x0a, 'n'],
  [0x0c, 'f'],
  [0x0d, 'r'],
  [0x22, '"'],
  [0x5c, '\\'],
]);

/** RFC 8259, section 7: as JSON.stringify writes it, with `/` escaped, and with everything outside ASCII escaped. */
function jsonForms(value: Buffer): Buffer[] {
  const escaped = (byte: number, put: (...bytes: number[]) => void): void => {
    const short = JSON_SHORT.get(byte);
    if (short !== undefined) put(0x5c, short.charCodeAt(0));
    else if (byte < 0x20) put(...Buffer.from(`\\u${byte.toString(16).padStart(4, '0')}`));
    else put(byte);
  };
  const forms = [
    rewritten(value, 6, escaped),
    rewritten(value, 6, (byte, put) => (byte === 0x2f ? put(0x5c, byte) : escaped(byte, put))),
  ];
  if (value.some((byte) => byte >= 0x80)) forms.push(jsonAscii(value, escaped));
  return forms;
}

function jsonAscii(
  value: Buffer,
  escaped: (byte: number, put: (...bytes: number[]) => void) => void,
): Buffer {
  const units = Buffer.from(value.toString('utf8'), 'utf16le');
  const result = Buffer.alloc(units.length * 3);
  let length = 0;
  const put = (...bytes: number[]): void => {
    for (const byte of bytes) result[length++] = byte;
  };
  for (let at = 0; at < units.length; at += 2) {
    const unit = units.readUInt16LE(at);
    if (unit < 0x80) escaped(unit, put);
    else put(...Buffer.from(`\\u${unit.toString(16).padStart(4, '0')}`));
  }
  units.fill(0);
  return result.subarray(0, length);
}

/** Within single quotes of a shell, as `set -x` and printf %q show it. */
function shellQuoted(value: Buffer): Buffer {
  return rewritten(value, 4, (byte, put) => (byte === 0x27 ? put(0x27, 0x5c, 0x27, 0x27) : put(byte)));
}

function rewritten(
  value: Buffer,
  most: number,
  each: (byte: number, put: (...bytes: number[]) => void) => void,
): Buffer {
  const result = Buffer.alloc(value.length * most);
  let length = 0;
  const put = (...bytes: number[]): void => {
    for (const byte of bytes) result[length++] = byte;
  };
  for (const byte of value) each(byte, put);
  return result.subarray(0, length);
}
