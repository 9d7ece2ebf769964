/**
 * What the daemon makes of the questions that one run's link process asks about the network: policy is asked, names are
 * resolved, policy is asked again, a connection is made and handed over. Everything that is new is on record before it is
 * answered; what was asked before is answered as before, and counted.
 *
 * The link process has read guest bytes: it may ask anything, in any number. It gets one evaluation per turn of the event
 * loop, so that other runs and the daemon's other work come in between, and answers at a rate that no honest job needs more of.
 */
import type { Socket } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import { printable } from '../core/bounded-tail.ts';
import { CtError, messageOf } from '../core/errors.ts';
import type { StreamFacts } from '../egress/control.ts';
import type { Decided, Denial, EgressDecision } from '../policy/decision.ts';
import { narrowIndex } from '../policy/destination.ts';
import {
  type DestinationIndex,
  type EgressInput,
  type EgressRequest,
  INPUT_VERSION,
  type RunFacts,
} from '../policy/input.ts';
import type { NetworkMode } from '../protocol/network.ts';
import type { RunEvent, StepRequest } from '../protocol/run.ts';
import { type DialSession, Unreachable } from './dialer.ts';
import {
  type EgressAnswer,
  type EgressQuestion,
  MAX_OPEN_QUESTIONS,
  type ProcessOrigin,
} from './egress-messages.ts';

/** Connections of a run that are open or being made; each holds a descriptor of its link process. */
export const MAX_CONNECTIONS = 1000;
/** Decisions that a run is answered from without an evaluation; what is asked again later is evaluated again. */
const MAX_REMEMBERED = 1000;
/** Refusals that the job's log names, of which the decision log has all, and as many destinations that were not reached. */
const MAX_NOTICES = 100;

/** What a run may ask at once, and each second from then on: an install of a thousand packages asks five thousand. */
const QUESTION_BURST = 5000;
const QUESTIONS_PER_SECOND = 2000;
/**
 * What evaluating and recording them may take of the daemon's time. A name of 126 labels takes fifty times as long as an ordinary
 * one, so a question costs as many as could have been asked in its time.
 */
const BUSY_MS_PER_SECOND = 100;
const PAUSE_MS = 10;
/** In place of the id of an entry, of what could not be recorded. */
const UNRECORDED = 'unrecorded';

/**
 * What the gate needs of a policy engine. A decision that could not be made is a denial. One that comes at once is that of a
 * fixed policy, and is kept for the run; one that is waited for comes from somewhere else, where it may be another tomorrow.
 */
export interface EgressPolicy {
  decideEgress(input: EgressInput): Decided<EgressDecision> | Promise<Decided<EgressDecision>>;
}

/** Where decisions are put on record. */
export interface EgressRecord {
  /** The id of the entry. Throws if it cannot be recorded: then the answer is no, and a ban is one all the same. */
  add(input: EgressInput, decided: Decided<EgressDecision>): string;
  /** The decision of that id was given once more. */
  repeat(id: string): void;
}

/** A decision that was put on record. */
export interface RecordedDecision {
  readonly id: string;
  readonly request: EgressRequest;
  readonly decision: EgressDecision;
  /** How often it was given, this time included. */
  readonly count: number;
  readonly step: string | undefined;
  readonly asker: Asker;
}

/** What made the link process ask. */
interface Asker {
  /** Number of the question. */
  readonly question: number;
  /** The process of the job, as far as that is known yet. */
  readonly by?: ProcessOrigin | undefined;
}

export interface EgressGateOptions {
  readonly run: RunFacts;
  readonly steps: readonly Pick<StepRequest, 'name' | 'network'>[];
  /** What admission gave the run. */
  readonly network: { readonly mode: NetworkMode; readonly allow: DestinationIndex };
  readonly policy: EgressPolicy;
  readonly dial: DialSession;
  readonly record: EgressRecord;
  /** Told of every decision that is no plain yes, also when it is given again. */
  readonly onDenial: (denied: RecordedDecision & { readonly denial: Denial }) => void;
  /** Told of whose question it was that {@link onDenial} was told of without that; perhaps, and soon. */
  readonly onOrigin: (question: number, by: ProcessOrigin) => void;
}

/** The link process that asks, and the run it asks for. */
export interface EgressPeer {
  /** Sends an answer; disposal lets go of a socket that the process never took. */
  answer(id: number, answer: EgressAnswer, socket?: Socket): Disposable;
  /** Something for the job's log. */
  tell(event: RunEvent): void;
  /** Policy ends the run: called in the turn of the decision, once; nothing is answered afterwards. */
  terminate(error: CtError): void;
}

interface Connection {
  readonly host: string;
  readonly port: number;
  readonly literal: boolean;
  readonly handle: Disposable;
  readonly by: ProcessOrigin | undefined;
}

interface Remembered {
  readonly settled: Promise<Settled>;
  /** Of a policy that may have changed meanwhile: it is asked again, and only a different answer is a new entry. */
  before: RecordedAs | undefined;
  count: number;
}

interface RecordedAs {
  readonly id: string;
  readonly decision: EgressDecision;
}

interface Settled {
  /** Absent if the decision could not be recorded. */
  readonly id: string | undefined;
  readonly decision: EgressDecision;
  /** Of a policy that is fixed. */
  readonly lasts: boolean;
}

export class EgressGate {
  readonly #options: EgressGateOptions;
  readonly #peer: EgressPeer;
  readonly #ended = new AbortController();
  readonly #remembered = new Map<string, Remembered>();
  readonly #connections = new Map<number, Connection>();
  readonly #turns: (() => void)[] = [];
  readonly #noticed = new Set<string>();
  readonly #unreachedNoticed = new Set<string>();
  /** Beyond the rate; no more than may be open. */
  readonly #delayed: EgressQuestion[] = [];
  #allowance = QUESTION_BURST;
  #allowanceAtMs = performance.now();
  #pause: NodeJS.Timeout | undefined;
  #isTurning = false;
  #lastQuestion = 0;
  #openQuestions = 0;
  #lastConnection = 0;
  /** Being made. */
  #dials = 0;
  #step: number | undefined;

  constructor(options: EgressGateOptions, peer: EgressPeer) {
    this.#options = options;
    this.#peer = peer;
  }

  /**
   * The step that runs. After its end (undefined) it counts until another begins: what it has left behind in the background is
   * not to have more then. What the link process says of it is all there is.
   */
  set step(index: number | undefined) {
    if (index !== undefined) this.#step = index < this.#options.steps.length ? index : undefined;
  }

  /**
   * Takes a question; it is answered later. Throws LINK_DIED if no honest process would ask it: too many at once, ids out
   * of turn, connections that it does not have.
   */
  question(question: EgressQuestion): void {
    if (this.#ended.signal.aborted) return;
    if (question.id !== this.#lastQuestion + 1) throw hostile('asks out of turn');
    this.#lastQuestion = question.id;
    this.#openQuestions += 1;
    if (this.#openQuestions > MAX_OPEN_QUESTIONS) {
      throw hostile(`asks more than ${MAX_OPEN_QUESTIONS} questions at a time`);
    }
    if (
      (question.ask === 'inspect' || question.ask === 'closed') &&
      !this.#connections.has(question.connection)
    ) {
      throw hostile('speaks of a connection that it does not have');
    }
    this.#delayed.push(question);
    if (!this.#pause) this.#serveDelayed();
  }

  /** Whose question it was. Throws LINK_DIED if it was never asked. */
  origin(question: number, by: ProcessOrigin): void {
    if (question > this.#lastQuestion) throw hostile('speaks of a question that it did not ask');
    this.#options.onOrigin(question, by);
  }

  readonly #serveDelayed = (): void => {
    const now = performance.now();
    const earned = ((now - this.#allowanceAtMs) * QUESTIONS_PER_SECOND) / 1000;
    this.#allowance = Math.min(QUESTION_BURST, this.#allowance + earned);
    this.#allowanceAtMs = now;
    while (this.#allowance >= 1) {
      const question = this.#delayed.shift();
      if (!question) break;
      this.#allowance -= 1;
      void this.#serve(question);
    }
    this.#pause = this.#delayed.length > 0 ? setTimeout(this.#serveDelayed, PAUSE_MS) : undefined;
  };

  /** Nothing is answered or connected any more. Idempotent. */
  close(): void {
    this.#ended.abort(new CtError('CANCELLED', 'the run has ended'));
    this.#turns.length = 0;
    this.#delayed.length = 0;
    clearTimeout(this.#pause);
    this.#connections.clear();
  }

  async #serve(question: EgressQuestion): Promise<void> {
    let answer: EgressAnswer;
    let socket: Socket | undefined;
    try {
      if (question.ask === 'connect') {
        const made = await this.#connect(question);
        if ('socket' in made) {
          socket = made.socket;
          this.#connected(question, socket);
          return;
        }
        answer = made;
      } else {
        answer = await this.#answerTo(question);
      }
    } catch (error) {
      // The run ended meanwhile, or something is wrong with us: nothing is allowed because of it.
      socket?.destroy();
      answer = { allowed: false, message: messageOf(error) };
      if (question.ask === 'connect')
        answer = { connected: false, reason: 'denied', message: messageOf(error) };
    }
    if (this.#ended.signal.aborted) return;
    this.#openQuestions -= 1;
    this.#peer.answer(question.id, answer);
  }

  async #answerTo(question: Exclude<EgressQuestion, { ask: 'connect' }>): Promise<EgressAnswer> {
    switch (question.ask) {
      case 'dns':
        return verdict(
          await this.#decide(
            { kind: 'dns', name: question.name, type: question.queryType },
            { question: question.id, by: question.by },
          ),
        );
      case 'inspect': {
        const { id, connection, facts } = question;
        const { host, port, literal, by } = this.#connections.get(connection) as Connection;
        return verdict(
          await this.#decide(
            { kind: 'stream', host, port, literal, ...streamFacts(facts) },
            { question: id, by: by ?? question.by },
          ),
        );
      }
      case 'attempted':
        await this.#decide({ kind: 'other', ...question.attempt }, { question: question.id });
        return { heard: true };
      case 'closed':
        this.#connections.get(question.connection)?.handle[Symbol.dispose]();
        this.#connections.delete(question.connection);
        return { heard: true };
    }
  }

  async #connect({
    id,
    host,
    port,
    literal,
    by,
  }: Extract<EgressQuestion, { ask: 'connect' }>): Promise<{ readonly socket: Socket } | EgressAnswer> {
    const asker = { question: id, by };
    const request = await this.#decide({ kind: 'connect', host, port, literal }, asker);
    if (request.action !== 'allow') return denied(request);
    if (this.#connections.size + this.#dials >= MAX_CONNECTIONS) {
      return unreachable(`the run has ${MAX_CONNECTIONS} connections open, and may have no more`);
    }
    this.#dials += 1;
    try {
      const { dial } = this.#options;
      const addresses = literal ? dial.literal(host) : await dial.resolve(host, this.#ended.signal);
      const decision = await this.#decide({ kind: 'address', host, port, literal, addresses }, asker);
      if (decision.action !== 'allow') return denied(decision);
      // Exactly those that were decided about.
      const targets = addresses.map(({ address }) => address);
      return { socket: await dial.connect(targets, port, this.#ended.signal) };
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      this.#unreached(host, port, error.message);
      return unreachable(`${host} port ${port}: ${error.message}`);
    } finally {
      this.#dials -= 1;
    }
  }

  #connected(question: Extract<EgressQuestion, { ask: 'connect' }>, socket: Socket): void {
    if (this.#ended.signal.aborted) {
      socket.destroy();
      return;
    }
    const { id, host, port, literal, by } = question;
    const connection = ++this.#lastConnection;
    const handle = this.#peer.answer(id, { connected: true, connection }, socket);
    this.#openQuestions -= 1;
    this.#connections.set(connection, { host, port, literal, handle, by });
  }

  /** Rejects when the run has ended, which a decision may do. */
  async #decide(request: EgressRequest, asker: Asker): Promise<EgressDecision> {
    const step = this.#step;
    const key = JSON.stringify([step ?? null, request]);
    const known = this.#remembered.get(key);
    if (known && !known.before) {
      known.count += 1;
      const { count } = known;
      const { id, decision } = await known.settled;
      if (id !== undefined) {
        this.#options.record.repeat(id);
        this.#consequences({ id, request, decision, count, step: this.#stepName(step), asker });
      }
      this.#ended.signal.throwIfAborted();
      return decision;
    }
    const count = 1 + (known?.count ?? 0);
    const settled = this.#evaluate(request, asker, step, known?.before && { ...known.before, count });
    this.#remember(key, { settled, before: undefined, count });
    const { decision } = await settled;
    this.#ended.signal.throwIfAborted();
    return decision;
  }

  #remember(key: string, known: Remembered): void {
    this.#remembered.set(key, known);
    known.settled.then(
      ({ id, decision, lasts }) => {
        // One that could not be made or recorded may be the next time.
        if (id === undefined) this.#remembered.delete(key);
        else if (!lasts) known.before = { id, decision };
      },
      () => this.#remembered.delete(key),
    );
    const [oldest] = this.#remembered.keys();
    if (this.#remembered.size > MAX_REMEMBERED && oldest !== undefined) this.#remembered.delete(oldest);
  }

  /** New: asks policy when it is this run's turn, puts the answer on record, and draws the consequences at once. */
  #evaluate(
    request: EgressRequest,
    asker: Asker,
    step: number | undefined,
    before: (RecordedAs & { readonly count: number }) | undefined,
  ): Promise<Settled> {
    const { promise, resolve, reject } = Promise.withResolvers<Settled>();
    const stepName = this.#stepName(step);
    const settle = (input: EgressInput, decided: Decided<EgressDecision>, lasts: boolean): void => {
      if (this.#ended.signal.aborted) {
        reject(this.#ended.signal.reason);
        return;
      }
      const { decision } = decided;
      const isRepeat = before !== undefined && isDeepStrictEqual(before.decision, decision);
      let id: string;
      try {
        id = isRepeat ? before.id : this.#options.record.add(input, decided);
      } catch (error) {
        const denial = unrecorded(error);
        resolve({ id: undefined, decision: { action: 'deny', denial }, lasts: false });
        this.#notice(request, 'deny', denial);
        // Whoever fills the record first does not get around what a denial leads to.
        if (decision.action !== 'allow')
          this.#consequences({ id: UNRECORDED, request, decision, count: 1, step: stepName, asker });
        return;
      }
      if (isRepeat) this.#options.record.repeat(id);
      resolve({ id, decision, lasts });
      this.#consequences({
        ...{ id, request, decision, asker },
        count: isRepeat ? before.count : 1,
        step: stepName,
      });
    };
    this.#inTurn(() => {
      const beganMs = performance.now();
      try {
        const input = this.#input(request, step);
        const decided = this.#options.policy.decideEgress(input);
        // Not awaited where it need not be: a violation ends the VM in this turn.
        if (decided instanceof Promise) decided.then((late) => settle(input, late, false)).catch(reject);
        else settle(input, decided, true);
      } catch (error) {
        reject(error);
      } finally {
        this.#allowance -= ((performance.now() - beganMs) * QUESTIONS_PER_SECOND) / BUSY_MS_PER_SECOND;
      }
    });
    return promise;
  }

  #input(request: EgressRequest, step: number | undefined): EgressInput {
    const { run, network, steps } = this.#options;
    const current = step === undefined ? undefined : steps[step];
    return {
      version: INPUT_VERSION,
      run,
      ...(current && step !== undefined
        ? { step: { index: step, name: current.name, network: current.network !== 'none' } }
        : {}),
      network: { mode: network.mode, allow: narrowIndex(network.allow, subjectOf(request)) },
      request,
    };
  }

  #consequences(recorded: RecordedDecision): void {
    const { denial, action } = recorded.decision;
    if (!denial || this.#ended.signal.aborted) return;
    this.#options.onDenial({ ...recorded, denial });
    this.#notice(recorded.request, action, denial);
    if (action !== 'terminate') return;
    this.close();
    this.#peer.terminate(violation(denial));
  }

  #notice(request: EgressRequest, action: EgressDecision['action'], denial: Denial): void {
    const { host, port } = destinationOf(request);
    const key = JSON.stringify([denial.rule, host, port]);
    if (this.#noticed.has(key) && action !== 'terminate') return;
    if (this.#noticed.size > MAX_NOTICES && action !== 'terminate') return;
    this.#noticed.add(key);
    if (this.#noticed.size > MAX_NOTICES && action !== 'terminate') {
      const message = `the network refused more; all of it: ct policy explain ${this.#options.run.id}`;
      this.#peer.tell({ type: 'notice', level: 'warning', message });
      return;
    }
    this.#peer.tell({
      type: 'network',
      action: action === 'allow' ? 'recorded' : action === 'deny' ? 'denied' : 'terminated',
      ...(host === undefined ? {} : { host: printable(host) }),
      ...(port === undefined ? {} : { port }),
      rule: denial.rule,
      message: printable(denial.message),
      ...(denial.hint === undefined ? {} : { hint: printable(denial.hint) }),
    });
  }

  /** Whoever wrote the job sees a connection that breaks, and cannot tell that from a refusal. */
  #unreached(host: string, port: number, message: string): void {
    const key = `${host} ${port}`;
    if (this.#unreachedNoticed.has(key) || this.#unreachedNoticed.size >= MAX_NOTICES) return;
    if (this.#ended.signal.aborted) return;
    this.#unreachedNoticed.add(key);
    this.#peer.tell({ type: 'unreached', host: printable(host), port, message: printable(message) });
  }

  #stepName(step: number | undefined): string | undefined {
    return step === undefined ? undefined : this.#options.steps[step]?.name;
  }

  /** One per turn of the event loop. */
  #inTurn(work: () => void): void {
    this.#turns.push(work);
    if (this.#isTurning) return;
    this.#isTurning = true;
    setImmediate(this.#turn);
  }

  readonly #turn = (): void => {
    const work = this.#turns.shift();
    if (!work) {
      this.#isTurning = false;
      return;
    }
    setImmediate(this.#turn);
    work();
  };
}

/** Where a request wants to go, as far as it goes anywhere. */
export function destinationOf(request: EgressRequest): { readonly host?: string; readonly port?: number } {
  if (request.kind === 'dns') return { host: request.name };
  if (request.kind !== 'other') return { host: request.host, port: request.port };
  return {
    ...(request.address === undefined ? {} : { host: request.address }),
    ...(request.port === undefined ? {} : { port: request.port }),
  };
}

function subjectOf(request: EgressRequest): string {
  return destinationOf(request).host ?? '';
}

function streamFacts(
  facts: StreamFacts,
): Pick<Extract<EgressRequest, { kind: 'stream' }>, 'protocol' | 'sni' | 'ech' | 'http_host'> {
  const { protocol } = facts;
  if (protocol === 'tls') return { protocol, sni: facts.sni, ech: facts.ech };
  return protocol === 'http' ? { protocol, http_host: facts.httpHost } : { protocol };
}

function verdict({ action, denial }: EgressDecision): EgressAnswer {
  if (action === 'allow') return { allowed: true };
  const { message = 'policy denies it', hint } = denial ?? {};
  return { allowed: false, message, ...(hint === undefined ? {} : { hint }) };
}

function denied({ denial }: EgressDecision): EgressAnswer {
  return { connected: false, reason: 'denied', message: denial?.message ?? 'policy denies it' };
}

function unreachable(message: string): EgressAnswer {
  return { connected: false, reason: 'unreachable', message };
}

/** What is not on record is not to be. */
function unrecorded(error: unknown): Denial {
  const message = `the decision could not be recorded, so the answer is no: ${messageOf(error)}`;
  return { rule: 'ct.host.unrecorded', message };
}

function violation({ rule, message, hint }: Denial): CtError {
  return new CtError('POLICY_VIOLATION', `${printable(message)}: the job was ended by the rule ${rule}`, {
    hint: hint === undefined ? undefined : printable(hint),
  });
}

function hostile(what: string): CtError {
  return new CtError('LINK_DIED', `the link process of the VM ${what}`);
}
