/**
 * A Sigstore of the test's own on loopback: certificate authority with certificate log, transparency log (Rekor 1 and 2)
 * and timestamp authority. The certificate authority believes every token.
 */
import { createHash, generateKeyPairSync } from 'node:crypto';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import {
  fulcioHandler,
  type HandlerFn,
  initializeCA,
  initializeCTLog,
  initializeTLog,
  initializeTSA,
  tsaHandler,
} from '@sigstore/mock';
import { HashAlgorithm, PublicKeyDetails, TrustedRoot } from '@sigstore/protobuf-specs';
import type { SigningServices } from '../../src/signing/services.ts';

export const ISSUER = 'https://token.example';
export const IDENTITY = 'https://github.com/org/repo/.github/workflows/release.yml@refs/tags/v1';

export interface SigstoreOptions {
  /** When certificates are issued; {@link Sigstore.time} without it. */
  readonly certificateTime?: Date;
  /** When log entries and timestamps are made; {@link Sigstore.time} without it. Whole seconds. */
  readonly witnessTime?: Date;
  /** False: certificates without a promise of a certificate log. */
  readonly certificateLog?: boolean;
  /** Changes an entry (as JSON) before the log takes it. */
  readonly rewriteEntry?: (entry: LogEntryBody) => unknown;
}

export interface LogEntryBody {
  apiVersion: string;
  kind: string;
  // biome-ignore lint/suspicious/noExplicitAny: each kind of entry has a shape of its own
  spec: any;
}

export interface Sigstore extends AsyncDisposable {
  readonly url: string;
  /** The time of its clocks, which stand still. */
  readonly time: Date;
  /** JSON of a trusted_root.json. */
  readonly trustedRoot: Buffer;
  /** The same, changed. */
  rootWith(change: (root: TrustedRoot) => void): Buffer;
  /** Everything: Rekor 1 and the timestamp authority. */
  readonly services: SigningServices;
  /** Bodies of requests so far, by path. */
  readonly requests: { readonly path: string; readonly body: string }[];
}

/** A token as an issuer would give it; nobody here checks its signature. */
export function identityToken(subject = IDENTITY, issuer = ISSUER): string {
  const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  return `${part({ alg: 'none' })}.${part({ iss: issuer, sub: subject, aud: 'sigstore' })}.c2lnbmF0dXJl`;
}

export async function startSigstore(options: SigstoreOptions = {}): Promise<Sigstore> {
  const [caKeys, ctKeys, logKeys, tsaKeys] = [ecKeys(), ecKeys(), ecKeys(), ecKeys()];
  // The root certificates are valid from now on, whatever the clocks say, so these are a little ahead. They show whole
  // seconds, because the timestamp authority writes fractions in a way that the verifier does not read.
  const time = new Date(Math.floor(Date.now() / 1000) * 1000 + 2000);
  const certificateTime = options.certificateTime ?? time;
  const witnessTime = options.witnessTime ?? time;
  const certificateLog =
    options.certificateLog === false ? undefined : await initializeCTLog(ctKeys, certificateTime);
  const authority = await initializeCA(caKeys, certificateLog, certificateTime);
  const timestamps = await initializeTSA(tsaKeys, witnessTime);
  const routes = new Map<string, HandlerFn>();
  const requests: { path: string; body: string }[] = [];
  const server = createServer(async (request, response) => {
    const path = request.url ?? '';
    const body = await readBody(request);
    requests.push({ path, body });
    const result = await routes.get(path)?.(body);
    response.writeHead(result?.statusCode ?? 404, { 'content-type': result?.contentType ?? 'text/plain' });
    response.end(result?.response ?? 'nothing here');
  });
  server.listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

  const log = await initializeTLog(url, logKeys, witnessTime);
  const append = async (entry: LogEntryBody): Promise<Awaited<ReturnType<typeof log.log>>> =>
    log.log((options.rewriteEntry?.(entry) ?? entry) as object);
  for (const { path, fn } of [fulcioHandler(authority), tsaHandler(timestamps)]) routes.set(path, fn);
  routes.set('/api/v1/log/entries', async (body) => ({
    statusCode: 201,
    contentType: 'application/json',
    response: JSON.stringify(await append(storedEntry(JSON.parse(body)))),
  }));
  routes.set('/api/v2/log/entries', async (body) => ({
    statusCode: 201,
    contentType: 'application/json',
    response: JSON.stringify(withoutTime(await append(storedEntryOfRekor2(JSON.parse(body))))),
  }));

  const validFor = { start: new Date(Date.now() - 86_400_000), end: undefined };
  const key = (rawBytes: Buffer) => ({
    rawBytes,
    keyDetails: PublicKeyDetails.PKIX_ECDSA_P256_SHA_256,
    validFor,
  });
  const logInstance = (publicKey: Buffer, baseUrl: string): TrustedRoot['tlogs'][number] => ({
    baseUrl,
    hashAlgorithm: HashAlgorithm.SHA2_256,
    publicKey: key(publicKey),
    logId: { keyId: createHash('sha256').update(publicKey).digest() },
    checkpointKeyId: undefined,
    operator: 'test',
  });
  const authorityOf = (...certificates: ArrayBufferView[]) => ({
    subject: { commonName: 'test', organization: 'test' },
    uri: url,
    certChain: { certificates: certificates.map((rawBytes) => ({ rawBytes: toBuffer(rawBytes) })) },
    validFor,
    operator: 'test',
  });
  const root: TrustedRoot = {
    mediaType: 'application/vnd.dev.sigstore.trustedroot+json;version=0.1',
    tlogs: [logInstance(log.publicKey, url)],
    certificateAuthorities: [authorityOf(authority.rootCertificate)],
    ctlogs: certificateLog === undefined ? [] : [logInstance(certificateLog.publicKey, url)],
    timestampAuthorities: [authorityOf(timestamps.intCertificate, timestamps.rootCertificate)],
  };
  const rootWith = (change: (root: TrustedRoot) => void): Buffer => {
    const copy = structuredClone(TrustedRoot.toJSON(root));
    const changed = TrustedRoot.fromJSON(copy);
    change(changed);
    return Buffer.from(JSON.stringify(TrustedRoot.toJSON(changed)));
  };
  return {
    url,
    time,
    trustedRoot: rootWith(() => {}),
    rootWith,
    services: {
      certificateAuthority: url,
      logs: [{ url, apiVersion: 1 }],
      timestampAuthorities: [url],
    },
    requests,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function ecKeys() {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' });
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

/** What Rekor 1 stores: of an envelope only digests, the signature and who made it. */
function storedEntry(proposed: LogEntryBody): LogEntryBody {
  if (proposed.kind !== 'dsse') return proposed;
  const { envelope, verifiers } = proposed.spec.proposedContent as { envelope: string; verifiers: string[] };
  const { payload, signatures } = JSON.parse(envelope) as { payload: string; signatures: { sig: string }[] };
  return {
    apiVersion: '0.0.1',
    kind: 'dsse',
    spec: {
      envelopeHash: { algorithm: 'sha256', value: sha256Hex(Buffer.from(envelope)) },
      payloadHash: { algorithm: 'sha256', value: sha256Hex(Buffer.from(payload, 'base64')) },
      signatures: [{ signature: signatures[0]?.sig, verifier: verifiers[0] }],
    },
  };
}

/** What Rekor 2 stores. */
function storedEntryOfRekor2(request: Record<string, never>): LogEntryBody {
  const dsse = request['dsseRequestV002'] as
    | { envelope: { payload: string; signatures: { sig: string }[] }; verifiers: unknown[] }
    | undefined;
  if (dsse !== undefined) {
    const { envelope, verifiers } = dsse;
    const digest = createHash('sha256').update(Buffer.from(envelope.payload, 'base64')).digest('base64');
    const signatures = [{ content: envelope.signatures[0]?.sig, verifier: verifiers[0] }];
    const dsseV002 = { payloadHash: { algorithm: 'SHA2_256', digest }, signatures };
    return { apiVersion: '0.0.2', kind: 'dsse', spec: { dsseV002 } };
  }
  const { digest, signature } = request['hashedRekordRequestV002'] as unknown as {
    digest: string;
    signature: unknown;
  };
  const hashedRekordV002 = { data: { algorithm: 'SHA2_256', digest }, signature };
  return { apiVersion: '0.0.2', kind: 'hashedrekord', spec: { hashedRekordV002 } };
}

/** An answer of Rekor 1 as Rekor 2 gives it: no promise, no time, only the proof. */
function withoutTime(answer: object): unknown {
  const [entry] = Object.values(answer) as {
    body: string;
    logID: string;
    verification: {
      inclusionProof: { logIndex: number; treeSize: number; rootHash: string; checkpoint: string };
    };
  }[];
  if (entry === undefined) throw new Error('the log gave no entry');
  const { kind, apiVersion } = JSON.parse(Buffer.from(entry.body, 'base64').toString());
  const { logIndex, treeSize, rootHash, checkpoint } = entry.verification.inclusionProof;
  return {
    logIndex: String(logIndex),
    logId: { keyId: Buffer.from(entry.logID, 'hex').toString('base64') },
    kindVersion: { kind, version: apiVersion },
    integratedTime: '0',
    inclusionProof: {
      logIndex: String(logIndex),
      treeSize: String(treeSize),
      rootHash: Buffer.from(rootHash, 'hex').toString('base64'),
      hashes: [],
      checkpoint: { envelope: checkpoint },
    },
    canonicalizedBody: entry.body,
  };
}

function sha256Hex(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function toBuffer(view: ArrayBufferView): Buffer {
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}
