/**
 * What a transparency log entry says beyond what the library compares: that the entry names our signer (else those who
 * watch the log for their identity would not see its use), and that no number in it is anything but what the log signed.
 */
import { createPublicKey } from 'node:crypto';
import type { TransparencyLogEntry } from '@sigstore/bundle';
import { pem } from '@sigstore/core';

/** What keeps the entry from counting, or undefined. Call it only after the library verified inclusion and body. */
export function logEntryProblem(entry: TransparencyLogEntry, signerDer: Buffer): string | undefined {
  const named = signerNamedBy(entry);
  if (named === undefined || !named.equals(signerDer)) return 'it is the entry of another signer';
  const promised = entry.inclusionPromise !== undefined;
  const proof = entry.inclusionProof;
  if (!promised && entry.integratedTime !== '0') return 'it has a time that the log did not sign';
  if (proof === undefined) return undefined;
  if (!promised && entry.logIndex !== proof.logIndex) return 'it has two places in the log';
  const checkpoint = proof.checkpoint?.envelope ?? '';
  if (!hasOnlySignatures(checkpoint)) return 'its checkpoint has more than a note and signatures';
  const [, size, root] = checkpoint.split('\n');
  if (size !== proof.treeSize || root !== proof.rootHash.toString('base64')) {
    return 'its proof is about another state of the log than its checkpoint';
  }
  return undefined;
}

/**
 * Whether nothing follows the note of a checkpoint but signature lines, in their one spelling
 * (https://github.com/C2SP/C2SP/blob/main/signed-note.md). One line is that of the log, which the library verified; others
 * are of witnesses that nobody here knows.
 */
function hasOnlySignatures(checkpoint: string): boolean {
  const lines = checkpoint.slice(checkpoint.indexOf('\n\n') + 2).split('\n');
  return (
    lines.pop() === '' &&
    lines.every((line) => {
      const [dash, name, signature, ...more] = line.split(' ');
      const canonical = Buffer.from(signature ?? '', 'base64').toString('base64') === signature;
      return dash === '\u2014' && name !== '' && canonical && more.length === 0;
    })
  );
}

/** DER of the certificate or public key that the entry was made with, for each kind of entry of Rekor 1 and 2. */
function signerNamedBy({ canonicalizedBody, kindVersion }: TransparencyLogEntry): Buffer | undefined {
  const body: unknown = JSON.parse(canonicalizedBody.toString('utf8'));
  switch (`${kindVersion.kind}/${kindVersion.version}`) {
    case 'hashedrekord/0.0.1':
      return fromPem(at(body, 'spec', 'signature', 'publicKey', 'content'));
    case 'dsse/0.0.1':
      return fromPem(at(body, 'spec', 'signatures', 0, 'verifier'));
    case 'intoto/0.0.2':
      return fromPem(at(body, 'spec', 'content', 'envelope', 'signatures', 0, 'publicKey'));
    case 'hashedrekord/0.0.2':
      return fromVerifier(at(body, 'spec', 'hashedRekordV002', 'signature', 'verifier'));
    case 'dsse/0.0.2':
      return fromVerifier(at(body, 'spec', 'dsseV002', 'signatures', 0, 'verifier'));
    default:
      return undefined;
  }
}

/** Base64 of PEM. */
function fromPem(value: unknown): Buffer | undefined {
  if (typeof value !== 'string') return undefined;
  const text = Buffer.from(value, 'base64').toString('latin1');
  if (text.includes('BEGIN CERTIFICATE')) return pem.toDER(text);
  try {
    return createPublicKey(text).export({ type: 'spki', format: 'der' });
  } catch {
    return undefined;
  }
}

function fromVerifier(verifier: unknown): Buffer | undefined {
  const raw = at(verifier, 'x509Certificate', 'rawBytes') ?? at(verifier, 'publicKey', 'rawBytes');
  return typeof raw === 'string' ? Buffer.from(raw, 'base64') : undefined;
}

function at(value: unknown, ...path: readonly (string | number)[]): unknown {
  return path.reduce<unknown>(
    (inner, key) =>
      typeof inner === 'object' && inner !== null && Object.hasOwn(inner, key)
        ? (inner as Record<string | number, unknown>)[key]
        : undefined,
    value,
  );
}
