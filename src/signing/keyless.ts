import { FulcioSigner, InternalError } from '@sigstore/sign';
import { CtError } from '../core/errors.ts';
import type { KeylessSource } from './source.ts';

/**
 * Signs as an OIDC identity: asks `identityToken` for a token of audience `sigstore`, makes a key, has the certificate
 * authority certify it for the identity, signs and forgets the key. The token goes to the certificate authority and
 * nowhere else: it appears in no argument, log or error.
 */
export function keyless(
  certificateAuthority: string,
  identityToken: () => Promise<string>,
  requestTimeoutMs: number,
): KeylessSource {
  return {
    kind: 'keyless',
    sign: async (data) => {
      const token = await readToken(identityToken);
      const signer = new FulcioSigner({
        fulcioBaseURL: certificateAuthority,
        identityProvider: { getToken: async () => token },
        timeout: requestTimeoutMs,
        retry: 2,
      });
      try {
        return await signer.sign(data);
      } catch (error) {
        throw withoutToken(error, token, certificateAuthority);
      }
    },
  };
}

async function readToken(identityToken: () => Promise<string>): Promise<string> {
  let token: string;
  try {
    token = (await identityToken()).trim();
  } catch (error) {
    if (error instanceof CtError) throw error;
    throw new CtError('SIGNING_FAILED', 'the identity provider gave no token', { cause: error });
  }
  if (token === '') throw new CtError('SIGNING_FAILED', 'the identity provider gave an empty token');
  return token;
}

/** Errors of the library quote the token when it does not parse, and repeat what the service said: neither is kept. */
function withoutToken(error: unknown, token: string, url: string): CtError {
  const code = error instanceof InternalError ? error.code : undefined;
  if (code === 'IDENTITY_TOKEN_PARSE_ERROR') {
    return new CtError('SIGNING_FAILED', 'the identity token is no JWT with a subject or a verified email');
  }
  const reason = error instanceof Error ? error.message.replaceAll(token, '[token]') : 'unknown error';
  return new CtError('SIGNING_FAILED', `${url} gave no certificate: ${reason.slice(0, 500)}`);
}
