/** The host daemon's way out: resolves names as this machine does, and connects. Decides nothing, reads nothing. */
import type { LookupAddress } from 'node:dns';
import { lookup } from 'node:dns/promises';
import { isIPv6, Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { withDeadline } from '../core/deadline.ts';
import { CtError, messageOf } from '../core/errors.ts';
import { canonicalAddress } from '../policy/address.ts';
import type { AddressFact } from '../policy/input.ts';
import { addressClasses } from './address-classes.ts';

/** An address that does not answer gets a rival after this long: RFC 8305, section 8. */
const ATTEMPT_DELAY_MS = 250;
const CONNECT_TIMEOUT_MS = 10_000;
const RESOLVE_TIMEOUT_MS = 10_000;
/** Tried of a name; the resolver, and with it whoever owns the name, says how many there are. */
const MAX_ADDRESSES = 16;
/** The resolver of the C library tells no time to live. Long enough for the connections of one download. */
const REMEMBER_MS = 5000;
const MAX_REMEMBERED = 1000;
/**
 * Lookups of one run that the resolver works on, also when nobody waits for them any more: each takes a thread of the daemon
 * for as long as the name server likes, and there are UV_THREADPOOL_SIZE / 2 for all runs (client.ts).
 */
const MAX_LOOKUPS_PER_RUN = 4;
/**
 * Sockets of one run that wait for an answer. A name with many addresses where nobody answers would otherwise take one for
 * each of them, for each connection. Beyond it there are no rivals; every connection has its one attempt.
 */
const MAX_ATTEMPTS_PER_RUN = 256;

/** Names that the operator has fixed (`egress.resolve` of the policy data), and the address of each. */
export type FixedAddresses = ReadonlyMap<string, string>;

export interface DialerOptions {
  /** Asked for every name that is not fixed; that of the machine unless a test has another. */
  readonly resolver?: (host: string) => Promise<readonly LookupAddress[]>;
  readonly resolveTimeoutMs?: number;
  readonly attemptDelayMs?: number;
  readonly connectTimeoutMs?: number;
}

interface Lookup {
  /** Addresses of the name, in the order of the resolver. Rejects with its error, or when it takes too long. */
  readonly found: Promise<readonly string[]>;
  /** When the resolver is done. Never rejects. */
  readonly over: Promise<unknown>;
}

/** One for the whole daemon: it remembers names for a moment. */
export class Dialer {
  readonly #options: DialerOptions;
  readonly #names = new Map<string, Lookup & { readonly until: number }>();

  constructor(options: DialerOptions = {}) {
    this.#options = options;
  }

  /** A way out for one run. */
  session(fixed: FixedAddresses = new Map()): DialSession {
    return new DialSession(this, fixed, this.#options);
  }

  lookup(host: string): Lookup {
    const now = performance.now();
    const known = this.#names.get(host);
    if (known && known.until > now) return known;
    const resolver = this.#options.resolver ?? ((name) => lookup(name, { all: true, order: 'verbatim' }));
    const answers = resolver(host);
    const over = answers.then(
      () => {},
      () => {},
    );
    const asked = { until: now + REMEMBER_MS, found: this.#addressesOf(answers), over };
    this.#names.delete(host);
    this.#names.set(host, asked);
    asked.found.catch(() => {
      if (this.#names.get(host) === asked) this.#names.delete(host);
    });
    const [oldest] = this.#names.keys();
    if (this.#names.size > MAX_REMEMBERED && oldest !== undefined) this.#names.delete(oldest);
    return asked;
  }

  async #addressesOf(asked: Promise<readonly LookupAddress[]>): Promise<readonly string[]> {
    const answers = await withDeadline(
      asked,
      this.#options.resolveTimeoutMs ?? RESOLVE_TIMEOUT_MS,
      () => new CtError('INTERNAL', 'the resolver of this host did not answer in time'),
    );
    const addresses = answers
      .map(({ address }) => address)
      .filter((one) => canonicalAddress(one) !== undefined);
    return [...new Set(addresses)].slice(0, MAX_ADDRESSES);
  }
}

/** Why nothing was connected; `message` is for whoever wrote the job. */
export class Unreachable extends Error {}

/** Of one run. */
export class DialSession {
  readonly #dialer: Dialer;
  readonly #fixed: FixedAddresses;
  readonly #attemptDelayMs: number;
  readonly #timeoutMs: number;
  readonly #waiting: (() => void)[] = [];
  #lookups = 0;
  #attempts = 0;

  constructor(dialer: Dialer, fixed: FixedAddresses, options: DialerOptions) {
    this.#dialer = dialer;
    this.#fixed = fixed;
    this.#attemptDelayMs = options.attemptDelayMs ?? ATTEMPT_DELAY_MS;
    this.#timeoutMs = options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
  }

  /** The address itself, as a fact. */
  literal(address: string): readonly AddressFact[] {
    return this.#facts([address], 'literal');
  }

  /** Addresses of `host`, at least one. Rejects with {@link Unreachable}, or with the reason of `signal`. */
  async resolve(host: string, signal: AbortSignal): Promise<readonly AddressFact[]> {
    const fixed = this.#fixed.get(host);
    if (fixed !== undefined) return this.#facts([fixed], 'operator');
    if (this.#lookups < MAX_LOOKUPS_PER_RUN) this.#lookups += 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    // The place goes to the next that waits, if one does.
    const leave = (): void => {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#lookups -= 1;
    };
    if (signal.aborted) {
      leave();
      throw signal.reason;
    }
    const { found, over } = this.#dialer.lookup(host);
    void over.then(leave);
    const addresses = await found.catch((error: unknown) => {
      throw new Unreachable(wordsOf(error));
    });
    if (addresses.length === 0) throw new Unreachable('the name has no address');
    return this.#facts(addresses, 'resolver');
  }

  /**
   * Connects to the first of `addresses` that answers: one after another, each with a head start (RFC 8305). The socket
   * may be half-closed, is paused, and nothing was read from it. Rejects with {@link Unreachable}, or with the reason of
   * `signal`.
   */
  connect(addresses: readonly string[], port: number, signal: AbortSignal): Promise<Socket> {
    const waiting = interleaved(addresses);
    const attempts = new Set<Socket>();
    const { promise, resolve, reject } = Promise.withResolvers<Socket>();
    let failure = 'no address';
    let headStart: NodeJS.Timeout | undefined;
    const settle = (winner: Socket | undefined, error: unknown): void => {
      clearTimeout(deadline);
      clearTimeout(headStart);
      signal.removeEventListener('abort', onAbort);
      waiting.length = 0;
      this.#attempts -= attempts.size;
      for (const attempt of attempts) if (attempt !== winner) attempt.destroy();
      attempts.clear();
      if (winner) resolve(winner);
      else reject(error);
    };
    const onAbort = (): void => settle(undefined, signal.reason);
    const deadline = setTimeout(
      () => settle(undefined, new Unreachable(`no answer within ${this.#timeoutMs / 1000} s`)),
      this.#timeoutMs,
    );
    const next = (): void => {
      clearTimeout(headStart);
      if (attempts.size > 0 && this.#attempts >= MAX_ATTEMPTS_PER_RUN) {
        headStart = setTimeout(next, this.#attemptDelayMs);
        return;
      }
      const address = waiting.shift();
      if (address === undefined) {
        if (attempts.size === 0) settle(undefined, new Unreachable(failure));
        return;
      }
      const socket = new Socket({ allowHalfOpen: true });
      attempts.add(socket);
      this.#attempts += 1;
      socket.pause();
      const onError = (error: Error): void => {
        failure = `${wordsOf(error)} (${address})`;
        if (!attempts.delete(socket)) return;
        this.#attempts -= 1;
        next();
      };
      socket.on('error', onError);
      socket.once('connect', () => {
        if (attempts.has(socket)) settle(socket, undefined);
        else socket.destroy();
      });
      socket.connect({ host: address, port, autoSelectFamily: false });
      headStart = setTimeout(next, this.#attemptDelayMs);
    };
    if (signal.aborted) onAbort();
    else {
      signal.addEventListener('abort', onAbort, { once: true });
      next();
    }
    return promise;
  }

  #facts(addresses: readonly string[], source: AddressFact['source']): readonly AddressFact[] {
    const own = ownAddresses();
    return addresses.map((address) => ({
      address: canonicalAddress(address) ?? address,
      classes: addressClasses(address, own),
      source,
    }));
  }
}

let own: { readonly until: number; readonly addresses: ReadonlySet<string> } | undefined;
/** Interfaces come and go, seldom; asking the kernel for every connection costs more than deciding. */
const OWN_ADDRESSES_MS = 1000;

/** Canonical addresses of this machine. */
function ownAddresses(): ReadonlySet<string> {
  const now = performance.now();
  if (own && own.until > now) return own.addresses;
  const addresses = new Set<string>();
  for (const one of Object.values(networkInterfaces()).flatMap((list) => list ?? [])) {
    const address = canonicalAddress(one.address.split('%')[0] ?? '');
    if (address !== undefined) addresses.add(address);
  }
  own = { until: now + OWN_ADDRESSES_MS, addresses };
  return addresses;
}

/** Families take turns, beginning with that of the first address: RFC 8305, section 4. */
function interleaved(addresses: readonly string[]): string[] {
  const first = addresses.filter((address) => isIPv6(address) === isIPv6(addresses[0] ?? ''));
  const second = addresses.filter((address) => !first.includes(address));
  const mixed = first.flatMap((address, index) => [address, ...second.slice(index, index + 1)]);
  return [...mixed, ...second.slice(first.length)];
}

/** What people call what resolvers and connect(2) say. */
const WORDS: Readonly<Record<string, string>> = {
  ENOTFOUND: 'no such host',
  EAI_AGAIN: 'the resolver of this host cannot say now',
  ECONNREFUSED: 'connection refused',
  ECONNRESET: 'connection reset',
  ETIMEDOUT: 'no answer',
  EHOSTUNREACH: 'no route to the host',
  ENETUNREACH: 'no route to its network',
};

function wordsOf(error: unknown): string {
  if (error instanceof CtError) return error.message;
  const code = String((error as { code?: unknown } | null)?.code ?? messageOf(error));
  return WORDS[code] ?? code;
}
