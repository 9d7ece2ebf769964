/**
 * One secret on its way from the client to the link process:
 *
 *     offset 0  u8  length of the name
 *     offset 1  name, then the value up to the end of the record
 *
 * The client controls the bytes; the record's own limit bounds them.
 */
import { CtError } from '../core/errors.ts';
import { MAX_SECRET_NAME_BYTES } from './limits.ts';

/** Names of secrets, and of the variables they become: `CT` and `CT_…` are set by ct itself. */
export const SECRET_PATTERN: string = `^(?!CT$|CT_(?!HOME$))[A-Za-z_][A-Za-z0-9_]{0,${MAX_SECRET_NAME_BYTES - 1}}$`;

export function isSecretName(name: string): boolean {
  return new RegExp(SECRET_PATTERN).test(name);
}

export function encodeSecret(name: string, value: Uint8Array): Buffer {
  const payload = Buffer.alloc(1 + name.length + value.length);
  payload[0] = name.length;
  payload.write(name, 1, 'latin1');
  payload.set(value, 1 + name.length);
  return payload;
}

/** Throws HOST_PROTOCOL. `value` is a copy. */
export function parseSecret(payload: Buffer): { readonly name: string; readonly value: Buffer } {
  const length = payload[0] ?? 0;
  const name = payload.toString('latin1', 1, 1 + length);
  if (name.length !== length || !isSecretName(name)) {
    throw new CtError('HOST_PROTOCOL', 'a `secret` record has an unusable name');
  }
  // Not from the pool of small buffers: others read there.
  const value = Buffer.alloc(payload.length - 1 - length);
  payload.copy(value, 0, 1 + length);
  return { name, value };
}
