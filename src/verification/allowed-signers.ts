/**
 * git's list of allowed signers (ssh-keygen(1), ALLOWED SIGNERS): a line for each key,
 *
 *     principal[,principal…] [option[,option…]] type key [comment]
 *
 * with the options `namespaces="…"`, `valid-after="…"` and `valid-before="…"`. Certificates of SSH are not verified.
 */
import { CtError, messageOf } from '../core/errors.ts';
import { MAX_SSH_KEY_BYTES, parseSshKey, sshFingerprint } from './ssh-key.ts';

/** Written by the operator. */
const MAX_LINES = 10_000;
const OPTION = /^(namespaces|valid-after|valid-before)="([^"]*)"(?:,|(?=\s)|$)/i;
const TYPE = /^(?:sk-)?(?:ssh|ecdsa)-/;

export interface AllowedSigner {
  readonly principals: readonly string[];
  readonly fingerprint: string;
  readonly namespaces: readonly string[] | undefined;
  readonly validAfter: Date | undefined;
  readonly validBefore: Date | undefined;
}

/** By fingerprint; a key may be in several lines. Throws TRUST_INVALID for a line that cannot be understood. */
export function parseAllowedSigners(
  text: string,
  file: string,
): ReadonlyMap<string, readonly AllowedSigner[]> {
  const signers = new Map<string, AllowedSigner[]>();
  const lines = text.split('\n');
  if (lines.length > MAX_LINES)
    throw new CtError('TRUST_INVALID', `${file} has more than ${MAX_LINES} lines`);
  for (const [index, line] of lines.entries()) {
    const content = line.trim();
    if (content === '' || content.startsWith('#')) continue;
    try {
      const signer = parseLine(content);
      signers.set(signer.fingerprint, [...(signers.get(signer.fingerprint) ?? []), signer]);
    } catch (error) {
      throw new CtError('TRUST_INVALID', `${file}, line ${index + 1}: ${messageOf(error)}`);
    }
  }
  return signers;
}

/** Whether the line counts for signatures of that namespace, now: nothing vouches for when a signature was made. */
export function countsNow(signer: AllowedSigner, namespace: string, now: Date): 'yes' | 'no' | 'expired' {
  if (signer.namespaces && !signer.namespaces.includes(namespace)) return 'no';
  const { validAfter, validBefore } = signer;
  if ((validAfter && now < validAfter) || (validBefore && now >= validBefore)) return 'expired';
  return 'yes';
}

function parseLine(line: string): AllowedSigner {
  const match = /^("[^"]+"|\S+)\s+(.*)$/.exec(line);
  if (!match) throw new Error('it has no key');
  const principals = (match[1] ?? '').replaceAll('"', '').split(',');
  let rest = match[2] ?? '';
  const options = new Map<string, string>();
  while (!TYPE.test(rest)) {
    const option = OPTION.exec(rest);
    if (!option) throw new Error('it has an option that is not supported, such as `cert-authority`');
    options.set((option[1] ?? '').toLowerCase(), option[2] ?? '');
    rest = rest.slice(option[0].length).trimStart();
  }
  const [type, encoded = ''] = rest.split(/\s+/);
  if (encoded.length > MAX_SSH_KEY_BYTES * 2) throw new Error('its key is too long');
  const blob = Buffer.from(encoded, 'base64');
  if (blob.toString('base64').replace(/=+$/, '') !== encoded.replace(/=+$/, '')) {
    throw new Error('its key is not in base64');
  }
  const key = parseSshKey(blob);
  if (key.type !== type) throw new Error('its key is of another type than it says');
  return {
    principals,
    fingerprint: sshFingerprint(blob),
    namespaces: options.get('namespaces')?.split(','),
    validAfter: timeOf(options.get('valid-after')),
    validBefore: timeOf(options.get('valid-before')),
  };
}

/** `YYYYMMDD[HHMM[SS]][Z]`; without Z it is in local time for ssh-keygen, which differs from host to host: refused. */
function timeOf(text: string | undefined): Date | undefined {
  if (text === undefined) return undefined;
  const match = /^(\d{4})(\d{2})(\d{2})(?:(\d{2})(\d{2})(\d{2})?)?Z$/.exec(text);
  const [year, month, day, hour = '00', minute = '00', second = '00'] = match?.slice(1) ?? [];
  const time = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  if (Number.isNaN(time.getTime())) throw new Error('a time in it is not `YYYYMMDDZ` or `YYYYMMDDHHMMZ`');
  return time;
}
