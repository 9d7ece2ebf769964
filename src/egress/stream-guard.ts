/**
 * One connection of the guest, from its first byte to its last. What the guest says first decides which protocol is spoken; the
 * control is asked whether that may pass, and until it has said yes no byte passes in either direction. Afterwards TLS, SSH
 * and whatever a rule for raw TCP allows is passed on unread; each further request of plain HTTP is asked about as well.
 *
 * What cannot be followed (broken TLS or HTTP, something never completed, something else) is asked about as `unknown`: only a
 * rule that lets anything pass allows that. A guest that says nothing is left alone for as long as the server says nothing:
 * clients open connections ahead of time. When the server begins, the protocol is one in which it does, and is asked about
 * then.
 */
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { drained } from '../core/drained.ts';
import { ClientHelloReader } from './client-hello.ts';
import type { StreamFacts, Verdict } from './control.ts';
import { HeldBytes } from './held-bytes.ts';
import { HttpRequests } from './http-requests.ts';
import { SwitchWatcher } from './switch-watcher.ts';

/** Clients write a ClientHello, or the head of a request, at once; an emulated guest may need seconds to go on with it. */
const INCOMPLETE_MS = 15_000;
/** The first word of a line, without what follows. */
const AMBIGUOUS_MS = 2000;
/** SSH clients send their line without waiting for the server's; some wait for it. */
const SERVER_FIRST_MS = 250;
/** Segments in which one incomplete thing may come; an object and a turn of the event loop each. */
const MAX_SEGMENTS = 10_000;
/** Of the server, before the guest may have it; a banner has some hundred bytes. */
const MAX_SERVER_HELD_BYTES = 16_384;

const TLS_HANDSHAKE = 22;
const TLS_ALERT = 21;
const SSH_PREFIX = 'SSH-';
const HTTP_PREFIX = 'HTTP/';
/** A method and the space after it. Those of no use to servers may be anything else. */
const HTTP_METHOD = /^[A-Z][A-Z-]{0,31} /;
const MAYBE_HTTP_METHOD = /^[A-Z][A-Z-]{0,31}$/;
const LONGEST_METHOD_BYTES = 33;

export interface GuardTimes {
  readonly incompleteMs?: number;
  readonly ambiguousMs?: number;
  readonly serverFirstMs?: number;
}

export interface GuardedConnection {
  /** What the guest sends is read from it. */
  readonly client: Duplex;
  /** Paused, nothing read. */
  readonly server: Socket;
  readonly inspect: (facts: StreamFacts) => Promise<Verdict>;
  /** Makes the guest's end a reset: refused, or the server's was reset. */
  readonly resetClient: () => void;
  /** Once, when nothing passes any more. */
  readonly onClosed: (bytesSent: number, bytesReceived: number) => void;
  readonly times?: GuardTimes;
}

type Spoken = 'tls' | 'http' | 'ssh' | 'ambiguous' | 'unknown';

/** Which protocol begins like this. */
function spokenBy(first: Buffer): Spoken {
  if (first[0] === TLS_HANDSHAKE) return 'tls';
  const text = first.toString('latin1', 0, LONGEST_METHOD_BYTES);
  if (text.startsWith(SSH_PREFIX)) return 'ssh';
  if (HTTP_METHOD.test(text)) return 'http';
  return MAYBE_HTTP_METHOD.test(text) ? 'ambiguous' : 'unknown';
}

export class StreamGuard {
  readonly #connection: GuardedConnection;
  readonly #client: Duplex;
  readonly #server: Socket;
  readonly #incompleteMs: number;
  readonly #ambiguousMs: number;
  readonly #serverFirstMs: number;
  #bytesSent = 0;
  #bytesReceived = 0;
  #closed = false;

  /** Nothing is looked at any more. */
  #raw = false;
  #sshAllowed = false;
  /** First bytes of the guest, as long as it is open what they are. */
  #first: HeldBytes | undefined = new HeldBytes();
  #hello: ClientHelloReader | undefined;
  #requests: HttpRequests | undefined;
  #segments = 0;
  #incompleteTimer: NodeJS.Timeout | undefined;

  /** Whether the server's bytes may pass. */
  #open = false;
  #serverHeld: Buffer[] = [];
  #serverHeldBytes = 0;
  #serverEnded = false;
  #serverTimer: NodeJS.Timeout | undefined;
  #switch:
    | { readonly watcher: SwitchWatcher; readonly decide: (how: 'switched' | 'http') => void }
    | undefined;

  /** What has to be done in order: one thing at a time, as each may have to wait for the control. */
  #tasks: Promise<void> = Promise.resolve();

  constructor(connection: GuardedConnection) {
    this.#connection = connection;
    this.#client = connection.client;
    this.#server = connection.server;
    this.#incompleteMs = connection.times?.incompleteMs ?? INCOMPLETE_MS;
    this.#ambiguousMs = connection.times?.ambiguousMs ?? AMBIGUOUS_MS;
    this.#serverFirstMs = connection.times?.serverFirstMs ?? SERVER_FIRST_MS;
    const [client, server] = [this.#client, this.#server];

    server.allowHalfOpen = true;
    server.setNoDelay(true);
    client.on('data', this.#onClientData);
    client.on('end', () => this.#enqueue(() => this.#clientEnded()));
    client.on('aborted', () => this.#reset());
    client.on('error', () => this.#reset());
    client.on('close', () => this.#clientClosed());
    server.on('data', this.#onServerData);
    server.on('end', () => this.#onServerEnd());
    server.on('error', () => this.#reset());
    server.on('close', () => this.#serverClosed());
    server.resume();
  }

  // ------------------------------------------------------------------------------------------------ the guest

  readonly #onClientData = (chunk: Buffer): void => {
    if (this.#raw) {
      if (!this.#send(chunk)) this.#pauseClientUntilDrained();
      return;
    }
    this.#client.pause();
    this.#enqueue(async () => {
      await this.#clientSaid(chunk);
      this.#client.resume();
    });
  };

  async #clientSaid(chunk: Buffer): Promise<void> {
    if (this.#raw) return this.#sendAll(chunk);
    clearTimeout(this.#serverTimer);
    this.#segments += 1;
    if (this.#requests) this.#requests.push(chunk);
    else this.#first?.append(chunk);
    if (this.#segments > MAX_SEGMENTS) return this.#askUnknown();
    await (this.#requests ? this.#followRequests(this.#requests) : this.#beginning(chunk));
  }

  /** Before anything was allowed: are the first bytes enough to ask? */
  async #beginning(chunk: Buffer): Promise<void> {
    const first = this.#first?.bytes ?? Buffer.alloc(0);
    switch (spokenBy(first)) {
      case 'ambiguous':
        this.#expectMore(this.#ambiguousMs);
        return;
      case 'tls': {
        this.#hello ??= new ClientHelloReader();
        const state = this.#hello.push(chunk);
        if (state.kind === 'needs-more') this.#expectMore(this.#incompleteMs);
        else if (state.kind !== 'hello') await this.#askUnknown();
        else await this.#askAndPass({ protocol: 'tls', sni: state.sni, ech: state.ech });
        return;
      }
      case 'ssh':
        if (this.#sshAllowed) await this.#passUnread();
        else await this.#askAndPass({ protocol: 'ssh' });
        return;
      case 'http': {
        clearTimeout(this.#incompleteTimer);
        this.#incompleteTimer = undefined;
        this.#requests = new HttpRequests();
        this.#requests.push(this.#takeFirst());
        await this.#followRequests(this.#requests);
        return;
      }
      case 'unknown':
        await this.#askUnknown();
    }
  }

  async #followRequests(requests: HttpRequests): Promise<void> {
    for (let item = requests.next(); item !== undefined && !this.#closed; item = requests.next()) {
      this.#segments = 0;
      this.#expectNothing();
      if (item.kind === 'violation') return this.#askUnknown(item.bytes);
      if (item.kind === 'request' && !(await this.#ask({ protocol: 'http', httpHost: item.host }))) return;
      const upgrade = item.kind === 'request' ? item.upgrade : null;
      const switching = upgrade === null ? undefined : this.#watchSwitch();
      await this.#sendAll(item.bytes);
      if (item.kind === 'request') this.#openServer();
      if (switching && (await this.#switched(switching, upgrade === 'websocket', requests))) return;
    }
    if (requests.isHolding) this.#expectMore(this.#incompleteMs);
    else this.#segments = 0;
  }

  /** Waits for the server's word: true if HTTP is over. */
  async #switched(
    switching: Promise<'switched' | 'http'>,
    isWebSocket: boolean,
    requests: HttpRequests,
  ): Promise<boolean> {
    const switched = (await switching) === 'switched';
    // What a websocket means is up to the host that was asked for. Any other protocol is one that is not read here.
    if (switched && !isWebSocket && !(await this.#ask({ protocol: 'unknown' }))) return true;
    const watcher = this.#switch?.watcher;
    this.#switch = undefined;
    if (switched) {
      this.#raw = true;
      this.#requests = undefined;
      await this.#sendAll(requests.release());
    }
    if (watcher) this.#receive(watcher.take());
    if (!this.#serverEnded) this.#server.resume();
    else this.#client.end();
    return switched;
  }

  #watchSwitch(): Promise<'switched' | 'http'> {
    const { promise, resolve } = Promise.withResolvers<'switched' | 'http'>();
    this.#switch = { watcher: new SwitchWatcher(), decide: resolve };
    return promise;
  }

  /** The guest will say no more. */
  async #clientEnded(): Promise<void> {
    // HTTP/2 streams say so a moment before they say that they were reset; and after a FIN there is no RST any more.
    await turn();
    if (this.#closed) return;
    const holds = (this.#first?.length ?? 0) > 0 || this.#requests?.isHolding === true;
    if (!this.#raw && holds) await this.#askUnknown();
    clearTimeout(this.#serverTimer);
    if (!this.#closed) this.#server.end();
  }

  #takeFirst(): Buffer {
    const bytes = this.#first?.take() ?? Buffer.alloc(0);
    this.#first = undefined;
    this.#hello = undefined;
    return bytes;
  }

  // -------------------------------------------------------------------------------------------- asking and passing

  /** Whether it may pass. If not, the connection is over. */
  async #ask(facts: StreamFacts): Promise<boolean> {
    this.#expectNothing();
    let verdict: Verdict;
    try {
      verdict = await this.#connection.inspect(facts);
    } catch {
      verdict = { allowed: false, message: 'there was no answer' };
    }
    if (this.#closed) return false;
    if (!verdict.allowed) this.#reset();
    return verdict.allowed;
  }

  async #askAndPass(facts: StreamFacts): Promise<void> {
    if (await this.#ask(facts)) await this.#passUnread();
  }

  async #askUnknown(rest: Buffer = Buffer.alloc(0)): Promise<void> {
    if (await this.#ask({ protocol: 'unknown' })) await this.#passUnread(rest);
  }

  /** From now on everything passes: what is held, and `rest` after it. */
  async #passUnread(rest: Buffer = Buffer.alloc(0)): Promise<void> {
    const held = this.#requests?.release() ?? this.#takeFirst();
    this.#requests = undefined;
    this.#raw = true;
    this.#expectNothing();
    this.#openServer();
    await this.#sendAll(held);
    await this.#sendAll(rest);
  }

  async #sendAll(bytes: Buffer): Promise<void> {
    if (bytes.length > 0 && !this.#send(bytes)) await drained(this.#server);
  }

  /** False: the server has to take what it was sent before. */
  #send(bytes: Buffer): boolean {
    if (this.#closed || !this.#server.writable) return true;
    this.#bytesSent += bytes.length;
    return this.#server.write(bytes);
  }

  #pauseClientUntilDrained(): void {
    this.#client.pause();
    this.#server.once('drain', () => this.#client.resume());
  }

  // ------------------------------------------------------------------------------------------------ the server

  readonly #onServerData = (chunk: Buffer): void => {
    if (this.#switch) {
      const how = this.#switch.watcher.push(chunk);
      if (how === 'more') return;
      this.#server.pause();
      this.#switch.decide(how);
    } else if (this.#open) {
      this.#receive(chunk);
    } else {
      this.#serverHeld.push(chunk);
      this.#serverHeldBytes += chunk.length;
      if (this.#serverHeldBytes > MAX_SERVER_HELD_BYTES) this.#server.pause();
      this.#enqueue(() => this.#serverBegan(false));
    }
  };

  /** The server speaks before anything was allowed. What the guest has begun to say comes first. */
  async #serverBegan(isLate: boolean): Promise<void> {
    if (this.#open || !this.#first || this.#first.length > 0) return;
    if (this.#saidGoodbye()) return;
    const said = Buffer.concat(this.#serverHeld).toString('latin1', 0, HTTP_PREFIX.length);
    const isSsh = said.startsWith(SSH_PREFIX);
    const isOpen = isSsh || SSH_PREFIX.startsWith(said) || HTTP_PREFIX.startsWith(said);
    clearTimeout(this.#serverTimer);
    if (isOpen && !isLate) {
      this.#serverTimer = setTimeout(() => this.#enqueue(() => this.#serverBegan(true)), this.#serverFirstMs);
    } else if (!isSsh) {
      await this.#askUnknown();
    } else if (await this.#ask({ protocol: 'ssh' })) {
      // The guest's own line is still to come, and to be looked at.
      this.#sshAllowed = true;
      this.#openServer();
    }
  }

  #openServer(): void {
    if (this.#open) return;
    this.#open = true;
    clearTimeout(this.#serverTimer);
    const held = Buffer.concat(this.#serverHeld);
    this.#serverHeld = [];
    if (held.length > 0) this.#receive(held);
    if (this.#serverEnded) this.#client.end();
    else if (!this.#client.writableNeedDrain) this.#server.resume();
  }

  #receive(chunk: Buffer): void {
    if (this.#closed || chunk.length === 0 || !this.#client.writable) return;
    this.#bytesReceived += chunk.length;
    if (this.#client.write(chunk)) return;
    this.#server.pause();
    this.#client.once('drain', () => this.#server.resume());
  }

  #onServerEnd(): void {
    this.#serverEnded = true;
    if (this.#switch) this.#switch.decide('http');
    else if (this.#open || this.#serverHeld.length === 0 || this.#saidGoodbye()) this.#client.end();
    // Otherwise what it has said waits for a verdict.
  }

  /** Servers that end an idle connection may say so first: that is no protocol in which the server begins. */
  #saidGoodbye(): boolean {
    const said = Buffer.concat(this.#serverHeld).toString('latin1', 0, HTTP_PREFIX.length);
    return said.startsWith(HTTP_PREFIX) || said.charCodeAt(0) === TLS_ALERT;
  }

  // ------------------------------------------------------------------------------------------------ time, and the end

  /** Something is incomplete: it has to become complete. The time runs from its beginning. */
  #expectMore(milliseconds: number): void {
    this.#incompleteTimer ??= setTimeout(() => this.#enqueue(() => this.#tooLate()), milliseconds);
  }

  #expectNothing(): void {
    clearTimeout(this.#incompleteTimer);
    this.#incompleteTimer = undefined;
  }

  async #tooLate(): Promise<void> {
    if (this.#incompleteTimer !== undefined && !this.#raw) await this.#askUnknown();
  }

  #enqueue(task: () => Promise<void>): void {
    this.#tasks = this.#tasks.then(async () => {
      if (!this.#closed) await task();
    });
    // Whatever it was: nothing is known about the connection any more, so nothing passes.
    this.#tasks = this.#tasks.catch(() => this.#reset());
  }

  #clientClosed(): void {
    // Both halves ended in order: the server takes what is still under way.
    if (this.#client.readableEnded && this.#client.writableFinished) {
      this.#enqueue(async () => {
        this.#server.end();
      });
    } else this.#reset();
  }

  #serverClosed(): void {
    if (!this.#serverEnded) this.#reset();
    // Both halves have ended; what the server said may still wait for a verdict.
    this.#enqueue(async () => {
      if (!this.#open) this.#client.end();
      this.#close();
    });
  }

  #reset(): void {
    if (this.#closed) return;
    this.#close();
    if (!this.#server.destroyed) this.#server.resetAndDestroy();
    this.#connection.resetClient();
  }

  #close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#incompleteTimer);
    clearTimeout(this.#serverTimer);
    this.#switch?.decide('http');
    this.#serverHeld = [];
    this.#first = undefined;
    this.#requests = undefined;
    this.#connection.onClosed(this.#bytesSent, this.#bytesReceived);
  }
}
