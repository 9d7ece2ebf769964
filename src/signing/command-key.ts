import { createHash, createPublicKey, type KeyObject, verify } from 'node:crypto';
import { CtError, messageOf } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import { keyId, keyKind } from '../verification/key-id.ts';
import type { KeySource } from './source.ts';

const DEFAULT_TIMEOUT_MS = 60_000; // somebody may have to touch a token
const MAX_ANSWER_BYTES = 4096; // a signature has 72 bytes, in base64 100

/** A command that signs with a key which never leaves a key management service or a token. */
export interface SigningCommand {
  /** Program and arguments; no shell. */
  readonly argv: readonly [string, ...string[]];
  /** Added to LC_ALL=C, PATH and HOME; the last two are all it gets of our environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** What it reads from stdin: the bytes to sign, or their SHA-256 (32 bytes; ECDSA only). */
  readonly input: 'message' | 'digest';
  /** How it writes the signature to stdout; one of ECDSA is in DER. */
  readonly output: 'raw' | 'base64';
  /** SubjectPublicKeyInfo in PEM of the key it signs with; ECDSA P-256 or Ed25519. */
  readonly publicKeyPem: string;
  /** 60 s without it. */
  readonly timeoutMs?: number;
}

/**
 * Signs by running a command. What it answers is verified before it is used. Throws `SIGNING_KEY_INVALID` if the public
 * key is not one it can be; signing throws `SIGNING_FAILED` if the command fails, is too slow or gives no signature.
 */
export function commandKey(command: SigningCommand): KeySource {
  const publicKey = readPublicKey(command);
  const kind = keyKind(publicKey);
  if (kind === undefined) throw invalid('it is neither ECDSA P-256 nor Ed25519');
  if (kind === 'ed25519' && command.input === 'digest') {
    throw invalid('Ed25519 signs messages, not digests');
  }
  return {
    kind: 'key',
    keyKind: kind,
    publicKey,
    sign: async (data) => {
      const answer = await run(command, data);
      const signature =
        command.output === 'raw' ? answer : Buffer.from(answer.toString('latin1').trim(), 'base64');
      if (!verify(kind === 'ed25519' ? null : 'sha256', data, publicKey, signature)) {
        throw new CtError(
          'SIGNING_FAILED',
          `${command.argv[0]} gave no signature that its public key verifies`,
        );
      }
      return {
        signature,
        key: {
          $case: 'publicKey',
          publicKey: publicKey.export({ type: 'spki', format: 'pem' }) as string,
          hint: keyId(publicKey),
        },
      };
    },
  };
}

async function run({ argv, env, input, timeoutMs }: SigningCommand, data: Buffer): Promise<Buffer> {
  const [file, ...args] = argv;
  const home = process.env['HOME'];
  try {
    return await runProgram({
      file,
      args,
      env: { ...(home === undefined ? {} : { HOME: home }), ...env },
      input: input === 'message' ? data : createHash('sha256').update(data).digest(),
      maxOutputBytes: MAX_ANSWER_BYTES,
      signal: AbortSignal.timeout(timeoutMs ?? DEFAULT_TIMEOUT_MS),
      failureCode: 'SIGNING_FAILED',
    });
  } catch (error) {
    if (error instanceof CtError && error.code === 'SIGNING_FAILED') throw error;
    const late = error instanceof CtError && error.code === 'CANCELLED';
    throw new CtError('SIGNING_FAILED', late ? `${file} did not sign in time` : messageOf(error), {
      cause: error,
    });
  }
}

function readPublicKey({ publicKeyPem }: SigningCommand): KeyObject {
  if (publicKeyPem.includes('PRIVATE KEY')) throw invalid('it is a private key');
  try {
    return createPublicKey({ key: publicKeyPem, format: 'pem' });
  } catch (error) {
    throw invalid('it does not parse', error);
  }
}

function invalid(reason: string, cause?: unknown): CtError {
  return new CtError('SIGNING_KEY_INVALID', `the public key of a signing command cannot be used: ${reason}`, {
    cause,
  });
}
