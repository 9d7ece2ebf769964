/** Requests to servers of others: by HTTPS, with the proxies and authorities of this machine; plainly only to this machine itself. */
import { get as httpGet, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, get as httpsGet } from 'node:https';

export interface GetOptions {
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
  /** Nothing may come for so long. */
  readonly idleMs?: number;
}

/** `url` is https:, or http: of this machine, which the caller has seen to. Rejects with what the system or the signal says. */
export async function secureGet(url: URL, { headers, signal, idleMs }: GetOptions): Promise<IncomingMessage> {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  const options = {
    headers: { 'user-agent': 'ct', 'accept-encoding': 'identity', ...headers },
    signal,
    ...(idleMs === undefined ? {} : { timeout: idleMs }),
  };
  // Whatever NODE_TLS_REJECT_UNAUTHORIZED says.
  const secured = { rejectUnauthorized: true, agent: new HttpsAgent({ proxyEnv: process.env }) };
  const request =
    url.protocol === 'https:'
      ? httpsGet(url, { ...options, ...secured }, resolve)
      : httpGet(url, { ...options, agent: false }, resolve); // to this machine: no proxy is asked
  request.on('error', reject);
  request.on('timeout', () => request.destroy(new Error(`nothing came for ${(idleMs ?? 0) / 1000} s`)));
  return await promise;
}
