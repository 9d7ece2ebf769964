/**
 * What the proxy of one VM (src/egress, in its link process) asks of the host daemon, which decides and dials. The proxy
 * reads guest bytes and has no network; the daemon has one and reads no guest bytes.
 */
import type { Socket } from 'node:net';

/** The outcome of a question; the reason of a denial is for the job's log. */
export type Verdict =
  | { readonly allowed: true }
  | { readonly allowed: false; readonly message: string; readonly hint?: string };

/** A destination as the guest knows it: a name it was given a synthetic address for, or a literal address. */
export interface GuestDestination {
  /** Lower-case name, or an address in its canonical form. */
  readonly host: string;
  readonly literal: boolean;
  readonly port: number;
}

/** What was seen at the beginning of a stream. */
export type StreamFacts =
  | { readonly protocol: 'tls'; readonly sni: string | null; readonly ech: boolean }
  /** One per request of the connection; `httpHost` without port, lower case. */
  | { readonly protocol: 'http'; readonly httpHost: string | null }
  | { readonly protocol: 'ssh' }
  /** Also when the guest waits for the other side to speak first. */
  | { readonly protocol: 'unknown' };

export type OtherAttempt = {
  /** `forged-request`: what no honest guest agent asks the proxy; its helper is not itself any more. */
  readonly what: 'udp' | 'raw-socket' | 'packet-socket' | 'other-family' | 'forged-request';
  readonly address?: string;
  readonly port?: number;
};

export interface EgressControl {
  /** Whether a name may be known at all; `type` is `A`, `AAAA` or another mnemonic. */
  dns(name: string, type: string): Promise<Verdict>;
  /** Decides, resolves, decides again and connects. The socket is paused, and nothing was read from it. */
  connect(
    destination: GuestDestination,
    /** Where the job connected to; may be a synthetic one. */
    address: string,
  ): Promise<
    | { readonly connected: true; readonly connection: number; readonly socket: Socket }
    | { readonly connected: false; readonly reason: 'denied' | 'unreachable'; readonly message: string }
  >;
  /** Whether what the guest says may pass on the connection. Nothing of it leaves before the answer. */
  inspect(connection: number, facts: StreamFacts): Promise<Verdict>;
  /** Something that has no way out was tried. */
  attempted(attempt: OtherAttempt): void;
  /** The connection is over; bytes are the guest's view. */
  closed(connection: number, bytesSent: number, bytesReceived: number): void;
}
