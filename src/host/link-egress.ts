/** The link process's end of the questions about the network (egress-messages.ts). */
import type { Socket } from 'node:net';
import type {
  EgressControl,
  GuestDestination,
  OtherAttempt,
  StreamFacts,
  Verdict,
} from '../egress/control.ts';
import { RESOLVER_ADDRESS } from '../egress/synthetic-addresses.ts';
import type { ConnectOrigins } from './connect-origins.ts';
import {
  type EgressAnswer,
  type EgressAsk,
  type EgressOrigin,
  type EgressQuestion,
  MAX_OPEN_DIALS,
  MAX_OPEN_QUESTIONS,
  tellableClaim,
} from './egress-messages.ts';

/** Questions that wait until others are answered. The guest makes them; beyond this the answer is no. */
const MAX_WAITING = 2000;
/** Attempts of a guest that floods are as well told by a few. */
const MAX_WAITING_ATTEMPTS = 64;

const MAX_UNATTRIBUTED = 1000;
const DNS_PORT = 53;

const NO_JOB = 'no job is under way';
const TOO_MANY = 'too many requests of the network at a time';

interface Waiting {
  readonly ask: EgressAsk;
  /** Where the job connected to, so that a process of it asks. */
  readonly place?: { readonly address: string; readonly port: number } | undefined;
  readonly resolve: (answer: EgressAnswer, socket?: Socket) => void;
}

/** Open questions of one kind, and those that wait behind them. */
interface Lane {
  readonly max: number;
  open: number;
  readonly waiting: Waiting[];
}

export class LinkEgressControl implements EgressControl {
  readonly #send: (question: EgressQuestion | EgressOrigin) => void;
  readonly #origins: ConnectOrigins | undefined;
  readonly #asked = new Map<number, Waiting & { readonly lane: Lane }>();
  readonly #dials: Lane = { max: MAX_OPEN_DIALS, open: 0, waiting: [] };
  readonly #others: Lane = { max: MAX_OPEN_QUESTIONS - MAX_OPEN_DIALS, open: 0, waiting: [] };
  /** Questions whose process was not known, and that were not answered with a yes. */
  readonly #unattributed = new Set<number>();
  #lastId = 0;
  #isOpen = false;
  #waitingAttempts = 0;
  #stepHasNetwork = true;
  /** Of connections that are not over. */
  readonly #sockets = new Map<number, Socket>();
  readonly #places = new Map<number, Waiting['place']>();

  /** Until it is opened, every answer is no, and nothing is asked. */
  constructor(send: (question: EgressQuestion | EgressOrigin) => void, origins?: ConnectOrigins) {
    this.#send = send;
    this.#origins = origins;
  }

  /** A job is under way: the daemon answers. */
  open(): void {
    this.#isOpen = true;
  }

  /** The job has ended: nothing is asked any more, and what waits for an answer gets a no. */
  close(): void {
    this.#isOpen = false;
    const unanswered = [...this.#asked.values(), ...this.#dials.waiting, ...this.#others.waiting];
    this.#asked.clear();
    for (const lane of [this.#dials, this.#others]) lane.waiting.length = 0;
    for (const { resolve, ask } of unanswered) resolve(refusal(ask, NO_JOB));
  }

  /**
   * A step begins. Without a network it has no connections either that an earlier step has left to a process in the
   * background. That nothing new is connected, policy says.
   */
  beginStep(hasNetwork: boolean): void {
    this.#stepHasNetwork = hasNetwork;
    if (hasNetwork) return;
    for (const socket of this.#sockets.values()) socket.destroy();
  }

  /** What the daemon said. */
  answered(id: number, answer: EgressAnswer, socket: Socket | undefined): void {
    const asked = this.#asked.get(id);
    if (!asked) {
      socket?.destroy();
      return;
    }
    this.#asked.delete(id);
    if (('allowed' in answer && answer.allowed) || ('connected' in answer && answer.connected)) {
      this.#unattributed.delete(id);
    }
    asked.lane.open -= 1;
    asked.resolve(answer, socket);
    this.#next(asked.lane);
  }

  async dns(name: string, type: string): Promise<Verdict> {
    const place = { address: RESOLVER_ADDRESS, port: DNS_PORT };
    return verdictOf((await this.#ask({ ask: 'dns', name, queryType: type }, place)).answer);
  }

  async connect(
    { host, literal, port }: GuestDestination,
    address: string,
  ): ReturnType<EgressControl['connect']> {
    const ask = { ask: 'connect', host, literal, port } as const;
    const { answer, socket } = await this.#ask(ask, { address, port });
    if ('connected' in answer && answer.connected) {
      if (socket && !this.#stepHasNetwork) socket.destroy();
      else if (socket) {
        this.#sockets.set(answer.connection, socket);
        this.#places.set(answer.connection, { address, port });
        // Node makes it anew on this side of the handover, with its defaults.
        socket.allowHalfOpen = true;
        return { connected: true, connection: answer.connection, socket };
      }
      this.closed(answer.connection, 0, 0);
      return {
        connected: false,
        reason: 'unreachable',
        message: `${host} port ${port}: the connection was lost`,
      };
    }
    socket?.destroy();
    if ('connected' in answer) return answer;
    return { connected: false, reason: 'denied', message: 'message' in answer ? answer.message : TOO_MANY };
  }

  async inspect(connection: number, facts: StreamFacts): Promise<Verdict> {
    const ask = { ask: 'inspect', connection, facts: tellable(facts) } as const;
    return verdictOf((await this.#ask(ask, this.#places.get(connection))).answer);
  }

  attempted(attempt: OtherAttempt): void {
    // No flood of what a job tries hides that its guest was taken over; of that there is not much (MAX_OFFENCES of the proxy).
    const mustBeTold = attempt.what === 'forged-request';
    if (this.#waitingAttempts >= MAX_WAITING_ATTEMPTS && !mustBeTold) return;
    this.#waitingAttempts += 1;
    void this.#ask({ ask: 'attempted', attempt }).finally(() => {
      this.#waitingAttempts -= 1;
    });
  }

  closed(connection: number, bytesSent: number, bytesReceived: number): void {
    this.#sockets.delete(connection);
    this.#places.delete(connection);
    void this.#ask({ ask: 'closed', connection, sent: bytesSent, received: bytesReceived });
  }

  #ask(
    ask: EgressAsk,
    place?: Waiting['place'],
  ): Promise<{ readonly answer: EgressAnswer; readonly socket: Socket | undefined }> {
    const lane = ask.ask === 'connect' ? this.#dials : this.#others;
    if (!this.#isOpen) return Promise.resolve({ answer: refusal(ask, NO_JOB), socket: undefined });
    // A connection that is over has to be told, and there are no more of them than there were questions.
    if (lane.waiting.length >= MAX_WAITING && ask.ask !== 'closed') {
      return Promise.resolve({ answer: refusal(ask, TOO_MANY), socket: undefined });
    }
    return new Promise((resolve) => {
      lane.waiting.push({ ask, place, resolve: (answer, socket) => resolve({ answer, socket }) });
      this.#next(lane);
    });
  }

  #next(lane: Lane): void {
    if (lane.open >= lane.max) return;
    const next = lane.waiting.shift();
    if (!next) return;
    lane.open += 1;
    const id = ++this.#lastId;
    this.#asked.set(id, { ...next, lane });
    const { ask, place } = next;
    const by = place && this.#origins?.of(place.address, place.port);
    this.#send({ type: 'egress', id, ...ask, ...(by && { by }) } as EgressQuestion);
    if (place && !by) this.#askLater(id, place);
  }

  /** The daemon need not know of what it allows. One that it ends the run for has no answer. */
  #askLater(id: number, { address, port }: NonNullable<Waiting['place']>): void {
    this.#origins?.expect(address, port, (by) => {
      if (this.#unattributed.delete(id)) this.#send({ type: 'egress-by', id, by });
    });
    this.#unattributed.add(id);
    const [oldest] = this.#unattributed;
    if (this.#unattributed.size > MAX_UNATTRIBUTED && oldest !== undefined) this.#unattributed.delete(oldest);
  }
}

function refusal({ ask }: EgressAsk, message: string): EgressAnswer {
  return ask === 'connect' ? { connected: false, reason: 'denied', message } : { allowed: false, message };
}

function verdictOf(answer: EgressAnswer): Verdict {
  return 'allowed' in answer ? answer : { allowed: false, message: 'the host daemon gave the wrong answer' };
}

function tellable(facts: StreamFacts): StreamFacts {
  if (facts.protocol === 'tls') return { ...facts, sni: tellableClaim(facts.sni) };
  return facts.protocol === 'http' ? { ...facts, httpHost: tellableClaim(facts.httpHost) } : facts;
}
