/**
 * A client of registries, as far as images need one ([distribution-spec v1.1](https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md)).
 *
 * A registry is a stranger: every answer is bounded, every blob and manifest is compared with its digest, and
 * credentials go to the registry's own origin and to the token service that it names. Redirects are followed for
 * downloads, without credentials elsewhere, and never from another machine to this one.
 */
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError, messageOf } from '../../core/errors.ts';
import type { Credentials } from './credentials.ts';
import { isLoopback, type Reference } from './reference.ts';

/** What the specification asks registries to accept of a manifest. */
export const MAX_MANIFEST_BYTES = 4 * 1024 * 1024;
const MAX_TOKEN_BYTES = 256 * 1024;
const MAX_ERROR_BYTES = 64 * 1024;
const MAX_REDIRECTS = 5;
const ATTEMPTS = 4;
const FIRST_PAUSE_MS = 500;
const MAX_PAUSE_MS = 30_000;
/** Until the head of an answer, and between two pieces of a body. */
const IDLE_TIMEOUT_MS = 60_000;
/** A piece of an upload, which is sent again if it is lost. */
const CHUNK_BYTES = 16 * 1024 * 1024;

export const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
export const OCI_INDEX = 'application/vnd.oci.image.index.v1+json';

export interface RegistryOptions {
  /** Asked once, when the registry wants some. */
  readonly credentials: () => Promise<Credentials | undefined>;
  readonly signal?: AbortSignal | undefined;
  /** 500 ms if absent, and twice as long each time; for tests. */
  readonly firstPauseMs?: number;
  readonly idleTimeoutMs?: number;
}

export interface FetchedManifest {
  readonly bytes: Buffer;
  readonly digest: string;
  readonly mediaType: string;
}

export interface UploadSource {
  readonly digest: string;
  readonly sizeBytes: number;
  readonly read: (offset: number, length: number) => Promise<Buffer>;
}

interface Request {
  readonly method: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
  /** Answers that the caller understands; every other one is an error. */
  readonly expected: readonly number[];
  readonly redirects?: boolean;
}

/** All methods throw REGISTRY_FAILED, REGISTRY_DENIED, REGISTRY_REFUSED or CANCELLED. */
export class Registry {
  readonly #reference: Reference;
  readonly #options: RegistryOptions;
  #authorization: string | undefined;
  #credentials: Promise<Credentials | undefined> | undefined;

  constructor(reference: Reference, options: RegistryOptions) {
    this.#reference = reference;
    this.#options = options;
  }

  /** By tag or digest; undefined if it is not there. */
  async manifest(
    name: string,
    accept: readonly string[] = [OCI_MANIFEST],
  ): Promise<FetchedManifest | undefined> {
    return this.#retried(async () => {
      const response = await this.#request(this.#url(`manifests/${name}`), {
        method: 'GET',
        headers: { accept: accept.join(', ') },
        expected: [200, 404],
        redirects: true,
      });
      if (response.status === 404) return discard(response, undefined);
      const bytes = await this.#bounded(response, MAX_MANIFEST_BYTES);
      const digest = sha256(bytes);
      if (name.startsWith('sha256:') && digest !== name) {
        throw refused(`${this.#reference.host} gave another manifest than ${name}`);
      }
      const mediaType = (response.headers.get('content-type') ?? '').split(';')[0]?.trim() ?? '';
      return { bytes, digest, mediaType };
    });
  }

  /** Returns whether the registry keeps track of what refers to `subject`, if the manifest names one. */
  async putManifest(
    name: string,
    bytes: Buffer,
    mediaType = OCI_MANIFEST,
  ): Promise<{ readonly tracksSubject: boolean }> {
    return this.#retried(async () => {
      const response = await this.#request(this.#url(`manifests/${name}`), {
        method: 'PUT',
        headers: { 'content-type': mediaType },
        body: bytes,
        expected: [201],
      });
      return discard(response, { tracksSubject: response.headers.has('oci-subject') });
    });
  }

  /** Descriptors of what refers to a manifest, as the registry has them; undefined if it keeps no such list. */
  async referrers(digest: string): Promise<Buffer | undefined> {
    return this.#retried(async () => {
      const response = await this.#request(this.#url(`referrers/${digest}`), {
        method: 'GET',
        headers: { accept: OCI_INDEX },
        // Registries without the API answer with 404, older ones with 400 or 405.
        expected: [200, 400, 404, 405],
        redirects: true,
      });
      if (response.status !== 200) return discard(response, undefined);
      return this.#bounded(response, MAX_MANIFEST_BYTES);
    });
  }

  async hasBlob(digest: string): Promise<boolean> {
    return this.#retried(async () => {
      const response = await this.#request(this.#url(`blobs/${digest}`), {
        method: 'HEAD',
        expected: [200, 404],
        redirects: true,
      });
      return discard(response, response.status === 200);
    });
  }

  /** Uploads a blob in pieces; after a lost one, from where the registry has it. `onBytes` gets how many are there. */
  async putBlob(source: UploadSource, onBytes: (bytes: number) => void = () => {}): Promise<void> {
    const started = await this.#retried(async () => {
      const response = await this.#request(this.#url('blobs/uploads/'), { method: 'POST', expected: [202] });
      return discard(response, this.#location(response, this.#url('blobs/uploads/')));
    });
    let location = started;
    for (let offset = 0, failures = 0; offset < source.sizeBytes; ) {
      const body = await source.read(offset, Math.min(CHUNK_BYTES, source.sizeBytes - offset));
      try {
        const response = await this.#request(location, {
          method: 'PATCH',
          headers: {
            'content-type': 'application/octet-stream',
            'content-range': `${offset}-${offset + body.length - 1}`,
          },
          body,
          expected: [202],
        });
        location = discard(response, this.#location(response, location));
        offset += body.length;
        failures = 0;
      } catch (error) {
        failures += 1;
        if (!isTransient(error) || failures >= ATTEMPTS) throw error;
        await this.#pause(failures);
        ({ location, offset } = await this.#uploaded(location, offset + body.length));
      }
      onBytes(offset);
    }
    const last = new URL(location);
    last.searchParams.set('digest', source.digest);
    try {
      const response = await this.#request(last, {
        method: 'PUT',
        headers: { 'content-type': 'application/octet-stream' },
        body: new Uint8Array(),
        expected: [201],
      });
      discard(response, undefined);
    } catch (error) {
      // It may have been done, and only the answer was lost.
      if (!isTransient(error) || !(await this.hasBlob(source.digest))) throw error;
    }
  }

  /**
   * Hands over the bytes of a blob, and compares them with its digest at the end. A broken connection is taken up where
   * it broke. What `to` got before an error is of no use.
   */
  async getBlob(
    { digest, sizeBytes }: { readonly digest: string; readonly sizeBytes: number },
    to: (piece: Uint8Array, offset: number) => Promise<void>,
  ): Promise<void> {
    const hash = createHash('sha256');
    let offset = 0;
    for (let failures = 0; offset < sizeBytes; ) {
      const before = offset;
      try {
        const response = await this.#request(this.#url(`blobs/${digest}`), {
          method: 'GET',
          headers: offset === 0 ? {} : { range: `bytes=${offset}-${sizeBytes - 1}` },
          expected: [200, 206],
          redirects: true,
        });
        // Without `Range` support everything comes again: what is known is passed over.
        let skip = offset;
        if (response.status === 206) {
          checkContentRange(response, offset, sizeBytes);
          skip = 0;
        }
        for await (const piece of this.#pieces(response)) {
          const wanted = skip >= piece.length ? new Uint8Array() : piece.subarray(skip);
          skip = Math.max(0, skip - piece.length);
          if (offset + wanted.length > sizeBytes) {
            throw refused(`${this.#reference.host} sent more than the ${sizeBytes} bytes of ${digest}`);
          }
          hash.update(wanted);
          if (wanted.length > 0) await to(wanted, offset);
          offset += wanted.length;
        }
        if (offset < sizeBytes) throw failed(`${this.#reference.host} sent too few bytes of ${digest}`);
      } catch (error) {
        failures = offset > before ? 1 : failures + 1;
        if (!isTransient(error) || failures >= ATTEMPTS) throw error;
        await this.#pause(failures);
      }
    }
    if (`sha256:${hash.digest('hex')}` !== digest) {
      throw refused(`${this.#reference.host} sent other bytes than those of ${digest}`);
    }
  }

  // ------------------------------------------------------------------------------------------------ requests

  #url(path: string): URL {
    return new URL(`/v2/${this.#reference.repository}/${path}`, this.#reference.origin);
  }

  async #retried<T>(work: () => Promise<T>): Promise<T> {
    for (let failures = 1; ; failures++) {
      try {
        return await work();
      } catch (error) {
        if (!isTransient(error) || failures >= ATTEMPTS) throw error;
        await this.#pause(failures, error);
      }
    }
  }

  async #pause(failures: number, error?: unknown): Promise<void> {
    const asked = error instanceof Transient ? error.retryAfterMs : 0;
    const own = (this.#options.firstPauseMs ?? FIRST_PAUSE_MS) * 2 ** (failures - 1);
    try {
      await sleep(Math.min(MAX_PAUSE_MS, Math.max(own, asked)), undefined, { signal: this.#options.signal });
    } catch {
      throw cancelled();
    }
  }

  async #request(url: URL | string, request: Request): Promise<Response> {
    const first = await this.#follow(new URL(url), request);
    if (first.status !== 401) return this.#checked(first, request);
    const challenge = first.headers.get('www-authenticate') ?? '';
    discard(first, undefined);
    this.#authorization = await this.#authorize(challenge);
    return this.#checked(await this.#follow(new URL(url), request), request);
  }

  async #follow(start: URL, request: Request): Promise<Response> {
    let url = start;
    for (let redirects = 0; ; redirects++) {
      const own = url.origin === this.#reference.origin;
      const headers = {
        ...request.headers,
        ...(own && this.#authorization !== undefined ? { authorization: this.#authorization } : {}),
      };
      const response = await this.#fetch(url, { ...request, headers });
      if (![301, 302, 303, 307, 308].includes(response.status)) return response;
      discard(response, undefined);
      if (request.redirects !== true) throw refused(`${url.host} redirects what it may not`);
      if (redirects >= MAX_REDIRECTS) throw refused(`${this.#reference.host} redirects without end`);
      url = this.#checkedUrl(response.headers.get('location'), url, 'a redirect');
    }
  }

  async #fetch(url: URL, { method, headers, body }: Request): Promise<Response> {
    const { signal } = this.#options;
    if (signal?.aborted) throw cancelled();
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), this.#options.idleTimeoutMs ?? IDLE_TIMEOUT_MS);
    try {
      return await fetch(url, {
        method,
        headers: { 'user-agent': 'ct', ...headers },
        ...(body === undefined ? {} : { body: body as Uint8Array<ArrayBuffer> }),
        redirect: 'manual',
        signal: signal === undefined ? late.signal : AbortSignal.any([signal, late.signal]),
      });
    } catch (error) {
      if (signal?.aborted) throw cancelled();
      const reason = late.signal.aborted ? 'it did not answer in time' : causeOf(error);
      throw new Transient(`${url.host} cannot be reached: ${reason}`, 0, error);
    } finally {
      clearTimeout(timer);
    }
  }

  async #checked(response: Response, { expected, method }: Request): Promise<Response> {
    if (expected.includes(response.status)) return response;
    const { host } = this.#reference;
    const codes = await this.#errorCodes(response);
    const what = `${host} answered ${method} with ${response.status}${codes}`;
    if (response.status === 401 || response.status === 403) {
      throw new CtError('REGISTRY_DENIED', what, {
        hint: `\`docker login ${host}\` or \`podman login ${host}\` stores credentials where ct reads them`,
      });
    }
    if (response.status === 404) throw new CtError('REGISTRY_DENIED', `${what}: it does not have that`);
    // 416: the registry has less or more of an upload than we believe, so it is asked.
    if ([408, 416, 429].includes(response.status) || response.status >= 500) {
      const seconds = Number(response.headers.get('retry-after') ?? 0);
      throw new Transient(what, Number.isFinite(seconds) ? seconds * 1000 : 0);
    }
    throw new CtError('REGISTRY_FAILED', what);
  }

  /** The codes of an error, such as ` (DENIED)`; the rest is text of a stranger. */
  async #errorCodes(response: Response): Promise<string> {
    try {
      const document = JSON.parse((await this.#bounded(response, MAX_ERROR_BYTES)).toString('utf8')) as {
        errors?: readonly { code?: unknown }[];
      };
      const codes = (document.errors ?? [])
        .map(({ code }) => String(code))
        .filter((code) => /^[A-Z_]{1,40}$/.test(code));
      return codes.length === 0 ? '' : ` (${codes.slice(0, 3).join(', ')})`;
    } catch {
      return '';
    }
  }

  async #bounded(response: Response, maxBytes: number): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    let bytes = 0;
    for await (const piece of this.#pieces(response)) {
      bytes += piece.length;
      if (bytes > maxBytes)
        throw refused(`${this.#reference.host} answered with more than ${maxBytes} bytes`);
      parts.push(piece);
    }
    return Buffer.concat(parts);
  }

  /** Leaving the loop closes the connection. */
  async *#pieces(response: Response): AsyncGenerator<Uint8Array> {
    if (response.body === null) return;
    const reader = response.body.getReader();
    const idleMs = this.#options.idleTimeoutMs ?? IDLE_TIMEOUT_MS;
    try {
      for (;;) {
        const { promise: late, reject } = Promise.withResolvers<never>();
        const timer = setTimeout(() => reject(new Error('nothing came for too long')), idleMs);
        try {
          const { done, value } = await Promise.race([reader.read(), late]);
          if (done) return;
          yield value;
        } finally {
          clearTimeout(timer);
        }
      }
    } catch (error) {
      if (error instanceof CtError) throw error;
      if (this.#options.signal?.aborted) throw cancelled();
      throw new Transient(`the connection to ${this.#reference.host} broke: ${causeOf(error)}`, 0, error);
    } finally {
      await reader.cancel().catch(() => {});
    }
  }

  /** Where an upload goes on: never anywhere but at the registry, since its bytes go with our credentials. */
  #location(response: Response, base: URL | string): URL {
    const location = response.headers.get('location');
    const url = location === null ? null : URL.parse(location, base);
    if (url?.origin !== this.#reference.origin || url.username !== '' || url.password !== '') {
      throw refused(`${this.#reference.host} wants the upload to go elsewhere`);
    }
    return url;
  }

  async #uploaded(location: URL, atMost: number): Promise<{ location: URL; offset: number }> {
    return this.#retried(async () => {
      const response = await this.#request(location, { method: 'GET', expected: [204] });
      const range = /^(?:bytes=)?0-([0-9]{1,15})$/.exec(response.headers.get('range') ?? '')?.[1];
      // Nothing there yet is written as 0-0, as one byte would be; sending the first byte again is refused, so begin anew.
      const offset = range === undefined || range === '0' ? 0 : Number(range) + 1;
      if (offset > atMost) throw refused(`${this.#reference.host} claims to have more than it was sent`);
      return discard(response, {
        location: response.headers.has('location') ? this.#location(response, location) : location,
        offset,
      });
    });
  }

  #checkedUrl(location: string | null, base: URL, what: string): URL {
    const url = location === null ? null : URL.parse(location, base);
    const fromHere = isLoopback(new URL(this.#reference.origin).hostname);
    const allowed =
      url !== null &&
      url.username === '' &&
      url.password === '' &&
      (isLoopback(url.hostname) ? fromHere : url.protocol === 'https:') &&
      (url.protocol === 'https:' || url.protocol === 'http:');
    if (!allowed) throw refused(`${what} of ${this.#reference.host} leads where it may not`);
    return url;
  }

  // ------------------------------------------------------------------------------------------ authorization

  async #authorize(challenge: string): Promise<string> {
    this.#credentials ??= this.#options.credentials();
    const credentials = await this.#credentials;
    const { host } = this.#reference;
    if (/^basic\b/i.test(challenge)) {
      if (credentials?.kind !== 'basic') throw this.#noCredentials();
      return basic(credentials);
    }
    if (!/^bearer\b/i.test(challenge)) throw refused(`${host} wants a kind of credentials that is not known`);
    const parameters = new Map(
      [...challenge.slice(0, 4096).matchAll(/([a-z]+)="([^"]*)"/gi)].map(([, key = '', value = '']) => [
        key.toLowerCase(),
        value,
      ]),
    );
    const realm = this.#checkedUrl(
      parameters.get('realm') ?? null,
      new URL(this.#reference.origin),
      'the token service',
    );
    const query = {
      service: parameters.get('service') ?? host,
      scope: parameters.get('scope') ?? `repository:${this.#reference.repository}:pull`,
    };
    const response = await this.#askForToken(realm, query, credentials);
    if (response.status === 401 || response.status === 403) throw discard(response, this.#noCredentials());
    if (response.status >= 500)
      throw discard(response, new Transient(`${realm.host} answered with ${response.status}`, 0));
    if (response.status !== 200)
      throw discard(response, refused(`${realm.host} gives no token, but ${response.status}`));
    let token: unknown;
    try {
      const answer = JSON.parse((await this.#bounded(response, MAX_TOKEN_BYTES)).toString('utf8')) as {
        token?: unknown;
        access_token?: unknown;
      };
      token = answer.token ?? answer.access_token;
    } catch (error) {
      if (error instanceof CtError) throw error;
    }
    if (typeof token !== 'string' || !/^[\x21-\x7e]+$/.test(token))
      throw refused(`${realm.host} gives no token`);
    return `Bearer ${token}`;
  }

  /** An identity token is exchanged by OAuth 2, a password is shown; either way redirects are not followed. */
  #askForToken(
    realm: URL,
    query: { readonly service: string; readonly scope: string },
    credentials: Credentials | undefined,
  ): Promise<Response> {
    if (credentials?.kind === 'identity-token') {
      const form = new URLSearchParams({
        ...query,
        grant_type: 'refresh_token',
        client_id: 'ct',
        refresh_token: credentials.token,
      });
      return this.#fetch(realm, {
        method: 'POST',
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        body: Buffer.from(form.toString()),
        expected: [],
      });
    }
    const url = new URL(realm);
    for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
    return this.#fetch(url, {
      method: 'GET',
      headers: credentials === undefined ? {} : { authorization: basic(credentials) },
      expected: [],
    });
  }

  #noCredentials(): CtError {
    const { host } = this.#reference;
    return new CtError(
      'REGISTRY_DENIED',
      `${host} wants credentials, and there are none for it that it accepts`,
      {
        hint: `\`docker login ${host}\` or \`podman login ${host}\` stores them where ct reads them`,
      },
    );
  }
}

/** Worth another attempt. */
class Transient extends CtError {
  readonly retryAfterMs: number;

  constructor(message: string, retryAfterMs: number, cause?: unknown) {
    super('REGISTRY_FAILED', message, { cause });
    this.retryAfterMs = retryAfterMs;
  }
}

function isTransient(error: unknown): boolean {
  return error instanceof Transient;
}

function checkContentRange(response: Response, offset: number, sizeBytes: number): void {
  if (response.headers.get('content-range') !== `bytes ${offset}-${sizeBytes - 1}/${sizeBytes}`) {
    throw refused('a registry answered with another part of a blob than it was asked for');
  }
}

function discard<T>(response: Response, result: T): T {
  void response.body?.cancel().catch(() => {});
  return result;
}

function basic({ user, password }: Extract<Credentials, { kind: 'basic' }>): string {
  return `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
}

function causeOf(error: unknown): string {
  const cause = (error as { cause?: unknown }).cause;
  return messageOf(cause ?? error).slice(0, 200);
}

function cancelled(): CtError {
  return new CtError('CANCELLED', 'the transfer was cancelled');
}

function refused(reason: string): CtError {
  return new CtError('REGISTRY_REFUSED', reason);
}

function failed(reason: string): CtError {
  return new Transient(reason, 0);
}

function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}
