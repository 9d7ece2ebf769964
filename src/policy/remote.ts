/**
 * Questions to an OPA server and its answers, by its data API: `POST /v1/data/<path>`. Without the network itself: who sends
 * them is src/host/opa-client.ts.
 */
import { messageOf } from '../core/errors.ts';
import { UNDEFINED_RESULT } from './engine.ts';
import type { Entrypoint } from './input.ts';

/** A decision is some KiB; what it gives a run is bounded by what was asked. The server may be anybody's. */
export const MAX_OPA_ANSWER_BYTES = 16 * 1024 * 1024;

/** Where to ask for a decision; `base` is the server's URL, perhaps with a path before that of its API. */
export function questionUrl(base: string, path: Entrypoint): URL {
  return new URL(`v1/data/${path}`, base.endsWith('/') ? base : `${base}/`);
}

export function questionBody(input: object): string {
  return JSON.stringify({ input });
}

/**
 * The result that an answer carries, or why it carries none. A server answers a path that it does not know, and a decision
 * that is undefined, with 200 and no `result`: that is no permission.
 */
export function readAnswer(
  status: number,
  body: string,
): { readonly result: unknown } | { readonly error: string } {
  if (status !== 200) return { error: `the OPA server answered with status ${status}` };
  let answer: unknown;
  try {
    answer = JSON.parse(body);
  } catch (error) {
    return { error: `the OPA server did not answer in JSON: ${messageOf(error)}` };
  }
  if (typeof answer !== 'object' || answer === null || Array.isArray(answer)) {
    return { error: 'the OPA server did not answer with an object' };
  }
  const { result } = answer as { result?: unknown };
  return result === undefined ? { error: UNDEFINED_RESULT } : { result };
}
