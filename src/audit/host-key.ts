/** The key of this host, which seals audit records: made when it is first needed, and the same from then on. */
import { createPrivateKey, createPublicKey } from 'node:crypto';
import { constants } from 'node:fs';
import { link, mkdir, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { generateKeyPair, ownKey } from '../signing/own-key.ts';
import { NO_SERVICES } from '../signing/services.ts';
import { keySigner, type Signer } from '../signing/signer.ts';
import { loadTrust, type Trust } from '../verification/trust.ts';
import type { SignerPolicy } from '../verification/verify.ts';

export const HOST_KEY_NAME = 'host.key';
export const HOST_PUBLIC_KEY_NAME = 'host.pub';
const TRUSTED_NAME = 'host';
const MAX_KEY_BYTES = 16 * 1024;
const GROUP_OR_OTHERS = 0o077;

/**
 * A signer with the key in `directory` (CT_HOME/keys), which is made if it is not there: `host.key`, PKCS#8 in PEM, mode
 * 0600, and `host.pub` for whoever verifies. Throws STATE_DIRECTORY_UNSAFE if others may read the key, and what `ownKey`
 * throws.
 */
export async function hostSigner(directory: string): Promise<Signer> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const path = join(directory, HOST_KEY_NAME);
  const pem = (await readPrivate(path)) ?? (await makeKey(directory, path));
  const source = await ownKey(pem);
  await publish(
    join(directory, HOST_PUBLIC_KEY_NAME),
    createPublicKey(createPrivateKey(pem)).export({ type: 'spki', format: 'pem' }) as string,
  );
  return keySigner(source, NO_SERVICES);
}

/** What seals are verified against. */
export interface SealTrust {
  readonly trust: Trust;
  readonly policy: SignerPolicy;
}

/** Trusts one public key (SubjectPublicKeyInfo in PEM). Throws TRUST_INVALID. */
export function trustKey(publicKeyPem: string): SealTrust {
  return {
    trust: loadTrust({ keys: [{ name: TRUSTED_NAME, pem: publicKeyPem }] }),
    policy: { keys: { names: [TRUSTED_NAME], logs: 0, timestampAuthorities: 0 } },
  };
}

/** Trusts the public key in a file. Throws TRUST_INVALID if there is none. */
export async function trustKeyFile(path: string): Promise<SealTrust> {
  let pem: string;
  try {
    pem = await readFile(path, 'utf8');
  } catch (error) {
    throw new CtError(
      'TRUST_INVALID',
      `the key that seals audit records cannot be read: ${messageOf(error)}`,
      {
        hint: 'name the public key of the host that ran the job with --key FILE',
        cause: error,
      },
    );
  }
  return trustKey(pem);
}

async function readPrivate(path: string): Promise<string | undefined> {
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile() || stats.size > MAX_KEY_BYTES || (stats.mode & GROUP_OR_OTHERS) !== 0) {
      throw new CtError('STATE_DIRECTORY_UNSAFE', `${path} is no key that only its owner may read`, {
        hint: `if nobody else has read it: chmod 600 ${path}`,
      });
    }
    return await file.readFile('utf8');
  } finally {
    await file.close();
  }
}

/** Two may do this at once: the first one's key counts for both. */
async function makeKey(directory: string, path: string): Promise<string> {
  const { privateKeyPem } = generateKeyPair();
  const temporary = join(directory, `.${HOST_KEY_NAME}-${process.pid}-${performance.now()}`);
  try {
    const file = await open(temporary, 'wx', 0o600);
    await file
      .writeFile(privateKeyPem)
      .then(() => file.sync())
      .finally(() => file.close());
    await link(temporary, path);
    return privateKeyPem;
  } catch (error) {
    const other = (error as NodeJS.ErrnoException).code === 'EEXIST' ? await readPrivate(path) : undefined;
    if (other === undefined) throw error;
    return other;
  } finally {
    await rm(temporary, { force: true });
  }
}

async function publish(path: string, pem: string): Promise<void> {
  try {
    const file = await open(path, 'wx', 0o644);
    await file.writeFile(pem).finally(() => file.close());
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}
