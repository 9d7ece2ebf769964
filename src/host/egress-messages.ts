/**
 * What a link process asks of the network, and what it is answered: src/egress/control.ts, in messages. Every question is
 * answered, also those that want nothing but to be heard, so that one bound on open questions bounds them all.
 */
import type { OtherAttempt, StreamFacts } from '../egress/control.ts';
import { canonicalAddress } from '../policy/address.ts';
import { canonicalHost } from '../policy/destination.ts';

/**
 * Open questions of one link process. An honest one keeps to it however many connections its guest opens; more of them
 * than this, and it is not ours any more. Times the length of the longest question, they fit what a link process may say
 * at a time (MAX_REPLY_BYTES of guarded-channel.ts).
 */
export const MAX_OPEN_QUESTIONS = 200;
/** Of these, connections that are being made: one to nowhere takes seconds, and names are to be answered meanwhile. */
export const MAX_OPEN_DIALS = 128;
/** Looked at of a name or an address: RFC 1035, section 2.3.4, as text without the final dot. */
const MAX_NAME_BYTES = 253;
/** What a guest claims to talk to: SNI (RFC 6066) and Host; longer is no name. */
const MAX_CLAIM_BYTES = 255;
const MAX_BYTES_TOLD = Number.MAX_SAFE_INTEGER;

const QUERY_TYPE = /^[A-Z0-9]{1,10}$/;
const CLAIM = /^[\x21-\x7e]*$/;
const OTHER_ATTEMPTS: readonly unknown[] = [
  'udp',
  'raw-socket',
  'packet-socket',
  'other-family',
  'forged-request',
] satisfies OtherAttempt['what'][];

/** Of a path and a command line, as far as alerts have them. */
export const MAX_ORIGIN_BINARY = 4096;
export const MAX_ORIGIN_ARGUMENTS = 1000;

/** The process of the job that something is of, as the guest's record has it. */
export interface ProcessOrigin {
  readonly pid: number;
  /** Empty if unknown. */
  readonly binary: string;
  readonly arguments?: string;
}

export type EgressAsk =
  | {
      readonly ask: 'dns';
      readonly name: string;
      readonly queryType: string;
      /** Whose question it is, where that is known already. */
      readonly by?: ProcessOrigin | undefined;
    }
  | {
      readonly ask: 'connect';
      readonly host: string;
      readonly literal: boolean;
      readonly port: number;
      readonly by?: ProcessOrigin | undefined;
    }
  | {
      readonly ask: 'inspect';
      readonly connection: number;
      readonly facts: StreamFacts;
      readonly by?: ProcessOrigin | undefined;
    }
  | { readonly ask: 'attempted'; readonly attempt: OtherAttempt }
  | { readonly ask: 'closed'; readonly connection: number; readonly sent: number; readonly received: number };

/** `id`: 1 for the first question of a link process, and one more for each after it. */
export type EgressQuestion = { readonly type: 'egress'; readonly id: number } & EgressAsk;

/** Whose question it was, known only now; for one that was not answered with a yes. */
export interface EgressOrigin {
  readonly type: 'egress-by';
  readonly id: number;
  readonly by: ProcessOrigin;
}

export type EgressAnswer =
  | { readonly allowed: true }
  | { readonly allowed: false; readonly message: string; readonly hint?: string }
  /** The socket comes with the message. */
  | { readonly connected: true; readonly connection: number }
  | { readonly connected: false; readonly reason: 'denied' | 'unreachable'; readonly message: string }
  | { readonly heard: true };

/** Undefined if it is none: then its sender is not ours any more. Addresses come out canonical. */
export function parseEgressQuestion(message: Readonly<Record<string, unknown>>): EgressQuestion | undefined {
  const { id } = message;
  const ask = isCount(id) ? parseAsk(message) : undefined;
  return ask && { type: 'egress', id: id as number, ...ask };
}

/** Undefined if it is none. */
export function parseEgressOrigin(message: Readonly<Record<string, unknown>>): EgressOrigin | undefined {
  const { id } = message;
  const by = parseOrigin(message['by']);
  return by && isCount(id) ? { type: 'egress-by', id, by } : undefined;
}

function parseOrigin(value: unknown): ProcessOrigin | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { pid, binary, arguments: text } = value as Record<string, unknown>;
  if (!isCount(pid) || typeof binary !== 'string' || binary.length > MAX_ORIGIN_BINARY) return undefined;
  if (text === undefined) return { pid, binary };
  return typeof text === 'string' && text.length <= MAX_ORIGIN_ARGUMENTS
    ? { pid, binary, arguments: text }
    : undefined;
}

/** Of a question, which may come without. */
function withOrigin<T extends EgressAsk>(ask: T, by: unknown): T | undefined {
  if (by === undefined) return ask;
  const origin = parseOrigin(by);
  return origin && { ...ask, by: origin };
}

function parseAsk(message: Readonly<Record<string, unknown>>): EgressAsk | undefined {
  const { ask, name, queryType, host, literal, port, connection, sent, received } = message;
  if (ask === 'dns') {
    return isName(name) && matches(queryType, QUERY_TYPE)
      ? withOrigin({ ask, name, queryType }, message['by'])
      : undefined;
  }
  if (ask === 'connect') {
    if (!isPort(port) || typeof literal !== 'boolean' || typeof host !== 'string') return undefined;
    if (!literal) return isName(host) ? withOrigin({ ask, host, literal, port }, message['by']) : undefined;
    const address = canonicalAddress(host.slice(0, MAX_NAME_BYTES));
    return address === undefined
      ? undefined
      : withOrigin({ ask, host: address, literal, port }, message['by']);
  }
  if (ask === 'inspect') {
    const facts = parseFacts(message['facts']);
    return facts && isCount(connection) ? withOrigin({ ask, connection, facts }, message['by']) : undefined;
  }
  if (ask === 'attempted') {
    const attempt = parseAttempt(message['attempt']);
    return attempt && { ask, attempt };
  }
  if (ask === 'closed') {
    return isCount(connection) && isCount(sent) && isCount(received)
      ? { ask, connection, sent, received }
      : undefined;
  }
  return undefined;
}

function parseFacts(value: unknown): StreamFacts | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { protocol, sni, ech, httpHost } = value as Record<string, unknown>;
  if (protocol === 'ssh' || protocol === 'unknown') return { protocol };
  if (protocol === 'tls' && isClaim(sni) && typeof ech === 'boolean') return { protocol, sni, ech };
  if (protocol === 'http' && isClaim(httpHost)) return { protocol, httpHost };
  return undefined;
}

function parseAttempt(value: unknown): OtherAttempt | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { what, address, port } = value as Record<string, unknown>;
  if (!OTHER_ATTEMPTS.includes(what)) return undefined;
  const canonical =
    typeof address === 'string' ? canonicalAddress(address.slice(0, MAX_NAME_BYTES)) : undefined;
  if (address !== undefined && canonical === undefined) return undefined;
  if (port !== undefined && !(port === 0 || isPort(port))) return undefined;
  return {
    what: what as OtherAttempt['what'],
    ...(canonical === undefined ? {} : { address: canonical }),
    ...(port === undefined ? {} : { port: port as number }),
  };
}

/**
 * What of a guest's claim may be told: anything that is no name becomes something that equals none. For the sender, who
 * must not be ended because of what its guest wrote.
 */
export function tellableClaim(claim: string | null): string | null {
  return isClaim(claim)
    ? claim
    : String(claim)
        .slice(0, MAX_CLAIM_BYTES)
        .replaceAll(/[^\x21-\x7e]/g, '?');
}

function isClaim(value: unknown): value is string | null {
  return (
    value === null || (typeof value === 'string' && value.length <= MAX_CLAIM_BYTES && CLAIM.test(value))
  );
}

/** Whether questions about this name may be asked at all. */
export function isName(value: unknown): value is string {
  if (typeof value !== 'string' || value.length > MAX_NAME_BYTES || value.startsWith('*')) return false;
  const canonical = canonicalHost(value);
  return 'host' in canonical && !canonical.literal && canonical.host === value;
}

function matches(value: unknown, pattern: RegExp): value is string {
  return typeof value === 'string' && pattern.test(value);
}

function isPort(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 1 && (value as number) <= 0xffff;
}

function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_BYTES_TOLD;
}
