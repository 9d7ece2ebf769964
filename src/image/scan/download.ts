/** Fetches a feed into a file: HTTPS with the machine's proxies and certificates, or plain HTTP to this machine itself. */
import { createWriteStream } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { CtError, messageOf } from '../../core/errors.ts';
import { secureGet } from '../../core/https-get.ts';

const MAX_REDIRECTS = 5;
/** Nothing comes for so long: the server is gone. */
const IDLE_MS = 60_000;

export interface DownloadOptions {
  readonly maxBytes: number;
  readonly signal: AbortSignal;
}

/** Whether a location names something to fetch; all else is a path. */
export function isUrl(location: string): boolean {
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(location);
}

/**
 * Writes what is at `location` to the new file `path`; a part of it may remain there on failure. Returns when the server says
 * that it was changed last. Throws VULN_DB_INVALID, or CANCELLED after an abort.
 */
export async function download(
  location: string,
  path: string,
  options: DownloadOptions,
): Promise<{ readonly modified: Date | undefined }> {
  let url = feedUrl(location);
  for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
    const response = await request(url, location, options.signal);
    const { statusCode = 0, headers } = response;
    if ([301, 302, 303, 307, 308].includes(statusCode) && headers.location !== undefined) {
      response.destroy();
      const next = URL.parse(headers.location, url);
      if (!next) throw failed(location, 'it redirects to what is no URL');
      url = feedUrl(next.href, url);
      continue;
    }
    if (statusCode !== 200) {
      response.destroy();
      throw failed(location, `the server answers with HTTP status ${statusCode}`);
    }
    await save(response, path, location, options);
    const modified = Date.parse(headers['last-modified'] ?? '');
    return { modified: Number.isNaN(modified) ? undefined : new Date(modified) };
  }
  throw failed(location, `it redirects more than ${MAX_REDIRECTS} times`);
}

/** Throws VULN_DB_INVALID: what crosses the network in the clear can be changed on its way to say that all is well. */
function feedUrl(location: string, from?: URL): URL {
  const url = URL.parse(location);
  const isLoopback = (host: string): boolean => /^(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])$/.test(host);
  const isPlain =
    url?.protocol === 'http:' && isLoopback(url.hostname) && (!from || from.protocol === 'http:');
  if (url && (url.protocol === 'https:' || isPlain)) return url;
  throw new CtError('VULN_DB_INVALID', `${location} is not fetched: it is no https: URL`, {
    hint: 'feeds come over HTTPS, or as a file that you fetched yourself',
  });
}

async function request(url: URL, location: string, signal: AbortSignal): Promise<IncomingMessage> {
  try {
    return await secureGet(url, { signal, idleMs: IDLE_MS });
  } catch (error) {
    throw signal.aborted ? signal.reason : failed(location, messageOf(error), error);
  }
}

async function save(
  response: IncomingMessage,
  path: string,
  location: string,
  { maxBytes, signal }: DownloadOptions,
): Promise<void> {
  let bytes = 0;
  const limit = new Transform({
    transform(chunk: Buffer, _, done) {
      bytes += chunk.length;
      if (bytes > maxBytes) done(failed(location, `it has more than ${maxBytes} bytes`));
      else done(null, chunk);
    },
  });
  try {
    await pipeline(response, limit, createWriteStream(path, { flags: 'wx', mode: 0o600 }), { signal });
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    if (error instanceof CtError || (error as NodeJS.ErrnoException).code === 'ENOSPC') throw error;
    throw failed(location, messageOf(error), error);
  }
}

function failed(location: string, why: string, cause?: unknown): CtError {
  return new CtError('VULN_DB_INVALID', `${location} could not be fetched: ${why}`, {
    hint: 'the database is as it was',
    cause,
  });
}
