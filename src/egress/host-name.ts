/**
 * Host names as the guest writes them: in DNS questions, SNI, Host headers and CONNECT. All of it is
 * guest-controlled; one grammar for all, so that what is compared is written alike.
 */

/** RFC 1035, 2.3.4, in the form with dots. */
export const MAX_NAME_CHARACTERS = 253;

/** Letters, digits, hyphens (RFC 1123), and underscores, which service names and not a few hosts have. */
const LABEL = /^(?!-)[a-z0-9_-]{1,63}(?<!-)$/;
/** A last label that some software reads as a part of an IPv4 address: `1.2.3.4`, `0x7f.1`, `127.1`. */
const NUMERIC_LABEL = /^(?:[0-9]+|0x[0-9a-f]*)$/;

/** Whether `name` is a host name in the one form that is passed on: lower case, no final dot, no address. */
export function isHostName(name: string): boolean {
  if (name.length === 0 || name.length > MAX_NAME_CHARACTERS) return false;
  const labels = name.split('.');
  return labels.every((label) => LABEL.test(label)) && !NUMERIC_LABEL.test(labels.at(-1) ?? '');
}

/** ASCII only: `toLowerCase` would make an ASCII letter of U+212A (Kelvin). */
export function lowerCaseAscii(text: string): string {
  return text.replace(/[A-Z]+/g, (letters) => letters.toLowerCase());
}

/** `host[:port]` or `[address]:port`, split; null if it is anything else. The host is not looked at. */
export function splitAuthority(
  text: string,
): { host: string; bracketed: boolean; port: number | null } | null {
  const match = /^(?:\[([0-9A-Fa-f:.]{2,45})\]|([^[\]:@/?#\s]+))(?::([0-9]{1,5}))?$/.exec(text);
  if (!match) return null;
  const [, bracketed, plain, digits] = match;
  const port = digits === undefined ? null : Number(digits);
  if (port !== null && (port < 1 || port > 65_535 || String(port) !== digits)) return null;
  return { host: bracketed ?? plain ?? '', bracketed: bracketed !== undefined, port };
}
