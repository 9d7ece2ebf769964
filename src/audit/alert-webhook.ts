/** Delivers alerts to one webhook: one request at a time, again after failures, without making anybody wait. */
import type { ClientRequest, RequestOptions } from 'node:http';
import { messageOf } from '../core/errors.ts';
import type { Alert } from './alert.ts';
import type { Webhook } from './alert-config.ts';
import { signature, webhookBody } from './alert-message.ts';
import { type Delivery, MAX_WAITING, type Outbox } from './alert-outbox.ts';

export interface DeliveryLimits {
  /** From the beginning of a request to the end of its answer. */
  readonly answerTimeoutMs: number;
  readonly maxAttempts: number;
  /** Waits before the second, third … attempt; half of it to all of it, at random. */
  readonly backOffMs: (attempts: number) => number;
}

/** Eight attempts within an hour: after 5 s, 15 s, 45 s … 15 min. */
export const DELIVERY_LIMITS: DeliveryLimits = {
  answerTimeoutMs: 10_000,
  maxAttempts: 8,
  backOffMs: (attempts) => Math.min(5000 * 3 ** (attempts - 1), 15 * 60_000),
};
/** A receiver can ask for patience, and not be forgotten for it. */
const MAX_RETRY_AFTER_MS = 60 * 60_000;
/** Answers are of no interest but for their status. */
const MAX_ANSWER_BYTES = 64 * 1024;
/** Statuses below 500 that say "later" (RFC 9110, RFC 6585, RFC 8470). */
const LATER = [408, 425, 429];

type Outcome =
  | { readonly type: 'delivered' }
  | { readonly type: 'refused'; readonly why: string }
  | { readonly type: 'failed'; readonly why: string; readonly retryAfterMs?: number };

export class WebhookSender {
  readonly #outbox: Outbox;
  readonly #limits: DeliveryLimits;
  readonly #onProblem: (message: string) => void;
  readonly #closing = new AbortController();
  #webhook: Webhook;
  #waiting: Delivery[];
  #timer: NodeJS.Timeout | undefined;
  #request: Promise<void> | undefined;
  #isFull = false;
  #isClosed = false;

  /** `waiting`: what an earlier process did not deliver. */
  constructor(
    webhook: Webhook,
    waiting: Delivery[],
    options: {
      readonly outbox: Outbox;
      readonly limits: DeliveryLimits;
      readonly onProblem: (message: string) => void;
    },
  ) {
    this.#webhook = webhook;
    this.#waiting = waiting;
    this.#outbox = options.outbox;
    this.#limits = options.limits;
    this.#onProblem = options.onProblem;
    this.#schedule();
  }

  /** How many alerts have not arrived yet. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** From the next request on. */
  set webhook(webhook: Webhook) {
    this.#webhook = webhook;
  }

  send(alert: Alert): void {
    if (!this.#webhook.events.includes(alert.action)) return;
    if (this.#waiting.length >= MAX_WAITING) {
      if (!this.#isFull) this.#problem(`${MAX_WAITING} alerts wait; later ones are only in the alert file`);
      this.#isFull = true;
      return;
    }
    this.#isFull = false;
    try {
      this.#waiting.push(this.#outbox.add(this.#webhook.name, alert, Date.now()));
      this.#schedule();
    } catch (error) {
      this.#problem(`alert ${alert.id} could not be queued: ${messageOf(error)}`);
    }
  }

  /** Ends a request that is under way once `signal` is aborted. Returns what was not delivered; it stays in the outbox. */
  async close(signal: AbortSignal): Promise<readonly Delivery[]> {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    const abort = (): void => this.#closing.abort();
    signal.addEventListener('abort', abort, { once: true });
    if (signal.aborted) abort();
    await this.#request;
    signal.removeEventListener('abort', abort);
    return this.#waiting;
  }

  #schedule(): void {
    if (this.#request || this.#isClosed) return;
    clearTimeout(this.#timer);
    const next = this.#waiting.toSorted((a, b) => a.dueMs - b.dueMs)[0];
    if (!next) return;
    // However far the clock was set back.
    const waitMs = Math.min(Math.max(0, next.dueMs - Date.now()), MAX_RETRY_AFTER_MS);
    this.#timer = setTimeout(() => this.#begin(next), waitMs);
    this.#timer.unref(); // the daemon does not stay for it
  }

  #begin(delivery: Delivery): void {
    this.#request = this.#attempt(delivery).finally(() => {
      this.#request = undefined;
      this.#schedule();
    });
  }

  async #attempt(delivery: Delivery): Promise<void> {
    const outcome = await post(
      this.#webhook,
      delivery.alert,
      AbortSignal.any([this.#closing.signal, AbortSignal.timeout(this.#limits.answerTimeoutMs)]),
    );
    if (outcome.type !== 'delivered' && this.#closing.signal.aborted) return; // not the receiver's fault
    try {
      this.#settle(delivery, outcome);
    } catch (error) {
      this.#problem(`alert ${delivery.alert.id}: the outbox cannot be written: ${messageOf(error)}`);
    }
  }

  #settle(delivery: Delivery, outcome: Outcome): void {
    const { alert } = delivery;
    if (outcome.type === 'failed' && delivery.attempts + 1 < this.#limits.maxAttempts) {
      delivery.attempts += 1;
      const backOffMs = this.#limits.backOffMs(delivery.attempts) * (0.5 + Math.random() / 2);
      delivery.dueMs = Math.ceil(Date.now() + Math.max(backOffMs, outcome.retryAfterMs ?? 0));
      this.#outbox.update(delivery);
      return;
    }
    this.#waiting = this.#waiting.filter((other) => other !== delivery);
    this.#outbox.remove(delivery);
    if (outcome.type === 'delivered') return;
    const attempts = outcome.type === 'failed' ? ` in ${delivery.attempts + 1} attempts` : '';
    this.#problem(`alert ${alert.id} was not delivered${attempts} (${outcome.why}); it is in the alert file`);
  }

  #problem(message: string): void {
    this.#onProblem(`webhook ${this.#webhook.name}: ${message}`);
  }
}

/** One attempt. Redirects are not followed: an alert goes where the operator said. */
async function post(webhook: Webhook, alert: Alert, signal: AbortSignal): Promise<Outcome> {
  const body = webhookBody(alert, webhook.format);
  const { url, secret, ca } = webhook;
  const options: RequestOptions & { ca?: string; rejectUnauthorized: true } = {
    method: 'POST',
    agent: false,
    signal,
    headers: {
      'content-type': 'application/json; charset=utf-8',
      'content-length': Buffer.byteLength(body),
      'user-agent': 'ct',
      'idempotency-key': alert.id,
      ...(secret === undefined ? {} : { 'x-ct-signature': signature(secret, body, Date.now()) }),
    },
    // Whatever NODE_TLS_REJECT_UNAUTHORIZED says.
    rejectUnauthorized: true,
    ...(ca === undefined ? {} : { ca }),
  };
  try {
    const { request } = url.protocol === 'https:' ? await import('node:https') : await import('node:http');
    return await answerTo(request(url, options), body);
  } catch (error) {
    const why = signal.aborted ? 'no answer in time' : messageOf(error);
    return { type: 'failed', why };
  }
}

function answerTo(request: ClientRequest, body: string): Promise<Outcome> {
  const { promise, resolve, reject } = Promise.withResolvers<Outcome>();
  request.on('error', reject);
  request.on('response', (response) => {
    const outcome = outcomeOf(response.statusCode ?? 0, response.headers['retry-after']);
    let bytes = 0;
    response.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > MAX_ANSWER_BYTES) response.destroy();
    });
    response.on('error', () => {});
    response.on('close', () => resolve(outcome));
  });
  request.end(body);
  return promise;
}

function outcomeOf(status: number, retryAfter: string | undefined): Outcome {
  if (status >= 200 && status < 300) return { type: 'delivered' };
  const why = `HTTP status ${status}`;
  if (status < 500 && !LATER.includes(status)) return { type: 'refused', why };
  const retryAfterMs = parseRetryAfter(retryAfter, Date.now());
  return { type: 'failed', why, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
}

/** Seconds or a date (RFC 9110, section 10.2.3); bounded. */
function parseRetryAfter(value: string | undefined, nowMs: number): number | undefined {
  if (value === undefined) return undefined;
  const waitMs = /^[0-9]{1,9}$/.test(value) ? Number(value) * 1000 : Date.parse(value) - nowMs;
  return Number.isNaN(waitMs) ? undefined : Math.min(Math.max(0, waitMs), MAX_RETRY_AFTER_MS);
}
