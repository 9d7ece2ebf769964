/**
 * Signatures of files by SSH keys (OpenSSH, PROTOCOL.sshsig), as git puts them into commits:
 *
 *     "SSHSIG", u32 version 1, string key, string namespace, string reserved, string hash, string signature
 *
 * in base64 between two lines. What is signed: "SSHSIG", namespace, reserved, hash, hash of the message.
 */
import { createHash } from 'node:crypto';
import { messageOf } from '../core/errors.ts';
import { parseSshKey, type SshKey, SshReader, sshString } from './ssh-key.ts';

const BEGIN = '-----BEGIN SSH SIGNATURE-----';
const END = '-----END SSH SIGNATURE-----';
const MAGIC = Buffer.from('SSHSIG');
/** Key and signature of RSA with 16384 bits, in base64. */
const MAX_ARMOR_LENGTH = 16_384;

export type SshVerification =
  | { readonly key: SshKey }
  /** Why it proves nothing. */
  | { readonly wrong: string };

export function isSshSignature(armor: string): boolean {
  return armor.startsWith(BEGIN);
}

/** Whose signature of `message` it is; whether that key is trusted is another question. */
export function verifySshSignature(armor: string, message: Buffer, namespace: string): SshVerification {
  try {
    return { key: verified(armor, message, namespace) };
  } catch (error) {
    return { wrong: messageOf(error) };
  }
}

function verified(armor: string, message: Buffer, namespace: string): SshKey {
  const text = armor.trim();
  if (text.length > MAX_ARMOR_LENGTH) throw new Error('it is too long');
  if (!text.startsWith(BEGIN) || !text.endsWith(END)) throw new Error('it is no SSH signature');
  const encoded = text.slice(BEGIN.length, -END.length).replaceAll(/\s/g, '');
  const bytes = Buffer.from(encoded, 'base64');
  if (bytes.toString('base64') !== encoded) throw new Error('it is not in base64');
  const reader = new SshReader(bytes);
  if (!reader.raw(MAGIC.length).equals(MAGIC) || reader.uint32() !== 1)
    throw new Error('it is of another version');
  const key = parseSshKey(reader.string());
  const [space, reserved, hash] = [reader.string(), reader.string(), reader.string()];
  const signature = reader.string();
  reader.end();
  if (space.toString('latin1') !== namespace) throw new Error(`it is not one for ${namespace}`);
  const algorithm = hash.toString('latin1');
  if (algorithm !== 'sha256' && algorithm !== 'sha512')
    throw new Error('it has another hash than SHA-256 or SHA-512');
  const signed = Buffer.concat([
    MAGIC,
    sshString(space),
    sshString(reserved),
    sshString(hash),
    sshString(createHash(algorithm).update(message).digest()),
  ]);
  if (!key.verifies(signed, signature)) throw new Error('it does not verify');
  return key;
}
