/** The part of the daemon's API that is about runs (api.ts lists it). Clients are the user's own, and may be wrong. */
import { CtError, ERROR_CODES, errorReport, toCtError } from '../core/errors.ts';
import { API_GC, API_RUNS } from './api.ts';
import { DEFAULT_KEEP_RUNS, DEFAULT_MAX_AGE_DAYS, type Runs } from './runs.ts';

export interface Answer {
  readonly status: number;
  readonly body: unknown;
  /** In place of `body`, where that is text already. */
  readonly json?: string;
}

/** Undefined if the request is about something else; an error is an answer. */
export async function answerRuns(method: string, target: string, runs: Runs): Promise<Answer | undefined> {
  try {
    const url = new URL(target, 'http://host');
    const ofDecisions = decisionsReference(method, url);
    if (ofDecisions !== undefined) {
      return { status: 200, body: undefined, json: await runs.decisionsJson(ofDecisions) };
    }
    const body = await route(method, url, runs);
    return body === undefined ? undefined : { status: 200, body };
  } catch (error) {
    return errorAnswer(error);
  }
}

export function errorAnswer(failure: unknown): Answer {
  const error = toCtError(failure);
  return { status: ERROR_CODES[error.code].http, body: { error: errorReport(error) } };
}

/** What a request for a shell calls its run; undefined if it is no such request. */
export function shellReference(method: string, target: string): string | undefined {
  const encoded = /^\/v1\/runs\/([^/?]{1,3000})\/shell$/.exec(target)?.[1];
  if (method !== 'POST' || encoded === undefined) return undefined;
  try {
    return decodeURIComponent(encoded);
  } catch {
    return undefined; // a stray %
  }
}

/** What a request for the decisions about a run calls that; undefined if it is no such request. */
function decisionsReference(method: string, { pathname }: URL): string | undefined {
  const encoded = /^\/v1\/runs\/([^/]+)\/decisions$/.exec(pathname)?.[1];
  return method === 'GET' && encoded !== undefined ? decodeURIComponent(encoded) : undefined;
}

function route(method: string, url: URL, runs: Runs): unknown | Promise<unknown> {
  const { pathname, searchParams } = url;
  if (pathname === API_GC && method === 'POST') {
    return runs.retain({
      keep: whole(searchParams, 'keep') ?? DEFAULT_KEEP_RUNS,
      maxAgeDays: whole(searchParams, 'maxAgeDays') ?? DEFAULT_MAX_AGE_DAYS,
    });
  }
  if (pathname === API_RUNS && method === 'GET') {
    return { runs: runs.list(searchParams.get('all') === '1') };
  }
  if (!pathname.startsWith(`${API_RUNS}/`)) return undefined;
  const [encoded = '', verb, ...rest] = pathname.slice(API_RUNS.length + 1).split('/');
  const reference = decodeURIComponent(encoded);
  if (rest.length > 0) return undefined;
  if (verb === 'cancel' && method === 'POST') return runs.cancel(reference);
  if (verb !== undefined) return undefined;
  if (method === 'GET') return runs.detail(reference);
  if (method === 'DELETE') return runs.remove(reference);
  return undefined;
}

function whole(parameters: URLSearchParams, name: string): number | undefined {
  const text = parameters.get(name);
  if (text === null) return undefined;
  if (!/^\d{1,6}$/.test(text)) throw new CtError('HOST_PROTOCOL', `\`${name}\` is not a whole number`);
  return Number(text);
}
