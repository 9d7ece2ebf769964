/**
 * What policies are asked, version 1 (docs/policy.md has it for authors of Rego). Names are those of the JSON documents.
 * Facts only: whoever fills these in decides nothing.
 */
import type { CodePolicyMode } from '../protocol/code.ts';
import type { JobOrigin, NetworkMode } from '../protocol/network.ts';
import type { Destination } from './destination.ts';

export const INPUT_VERSION = 1;

export const ENTRYPOINTS = [
  'ct/admission/decision',
  'ct/egress/decision',
  'ct/detect/decision',
  'ct/image/decision',
  'ct/verify/decision',
] as const;
/** Path of the rule that decides; with dots, the name of its package and rule. */
export type Entrypoint = (typeof ENTRYPOINTS)[number];

export interface RunFacts extends JobOrigin {
  /** Absent when policy is asked before there is a run. */
  readonly id?: string;
  readonly job: string;
}

/** `ct/admission/decision`: may this job run at all, and what does it get? */
export interface AdmissionInput {
  readonly version: typeof INPUT_VERSION;
  readonly run: RunFacts;
  readonly image: { readonly name: string; readonly digest: string };
  readonly resources: {
    readonly cpus: number;
    readonly memory_mib: number;
    readonly disk_mib: number;
    readonly timeout_seconds: number;
  };
  /** Names only. */
  readonly secrets: readonly string[];
  readonly network: {
    /** Absent: policy's. */
    readonly mode?: NetworkMode;
    /** Everything that was asked for, lowered; presets with what they stand for on this host. */
    readonly ask: readonly Destination[];
  };
  /** Which code may run, as the job asks for it; absent: as policy says. */
  readonly exec?: { readonly mode: CodePolicyMode };
}

/** `ct/image/decision`: may this image boot? Everything in it was proved on this host. */
export interface ImageInput {
  readonly version: typeof INPUT_VERSION;
  /** Seconds since 1970, up to a whole minute, so that a question is asked again as it is. */
  readonly now: number;
  readonly run: RunFacts;
  readonly image: {
    readonly name: string;
    /** Of the manifest, under which every part of the image is. */
    readonly digest: string;
    /** On this machine; null: it came from elsewhere. */
    readonly made: { readonly how: 'built' | 'imported'; readonly at: number } | null;
    /** What it extends, from the nearest on, and its suite; empty if that is not known. */
    readonly base: readonly string[];
    /** Digest of the lock that its packages are from. */
    readonly lock: string | null;
    /** There is a lock, and it could not be met. */
    readonly unlocked: boolean;
  };
  /** Signatures of the image that verify, by signers of the policy. */
  readonly signatures: readonly ImageSignature[];
  /** What is signed about it beside that. */
  readonly attestations: readonly {
    readonly kind: 'provenance' | 'sbom';
    readonly signer: string;
    /** Of provenance: who built it. */
    readonly builder: string | null;
  }[];
  /** Why no signature counts; null if one does. */
  readonly refusal: { readonly code: string; readonly message: string } | null;
  /** The newest result; null if it was never scanned. Times are seconds since 1970. */
  readonly scan: {
    readonly detector: 'database' | 'apt';
    readonly scanned_at: number;
    readonly as_of: number;
    readonly revision: string;
    readonly counts: Readonly<Record<string, number>>;
    readonly worst: string | null;
    readonly accepted: number;
    readonly fixable: number;
    readonly unexamined: number;
  } | null;
}

export interface ImageSignature {
  /** As policy calls it. */
  readonly signer: string;
  readonly kind: 'key' | 'identity';
  /** Of an identity. */
  readonly subject: string | null;
  readonly issuer: string | null;
  /** When it was made: by a log or timestamp authority, else as the signer says; null if nobody does. */
  readonly at: number | null;
  /** Whether a log or a timestamp authority vouches for `at`. */
  readonly witnessed: boolean;
}

/** What an address is besides an address; empty for one of the public internet. */
export type AddressClass =
  | 'loopback'
  | 'private'
  | 'link-local'
  | 'metadata'
  | 'multicast'
  | 'unspecified'
  | 'reserved'
  | 'translated' // an IPv4 address in IPv6 clothes: mapped, NAT64, 6to4, Teredo
  | 'host'; // one of this machine's own

export interface AddressFact {
  readonly address: string;
  readonly classes: readonly AddressClass[];
  /** `operator`: fixed by `egress.resolve` of the policy data. */
  readonly source: 'resolver' | 'operator' | 'literal';
}

export type EgressRequest =
  /** The guest asks for the address of a name. */
  | { readonly kind: 'dns'; readonly name: string; readonly type: string }
  /** It connects to a name that it was given an address for, or to a literal address. */
  | { readonly kind: 'connect'; readonly host: string; readonly port: number; readonly literal: boolean }
  /** The host has resolved the name and is about to connect: all addresses that it would try. */
  | {
      readonly kind: 'address';
      readonly host: string;
      readonly port: number;
      readonly literal: boolean;
      readonly addresses: readonly AddressFact[];
    }
  /** What the guest says first on the connection, and every further plain HTTP request. */
  | {
      readonly kind: 'stream';
      readonly host: string;
      readonly port: number;
      readonly literal: boolean;
      readonly protocol: 'tls' | 'http' | 'ssh' | 'unknown';
      /** With `tls`: null if there is no SNI. */
      readonly sni?: string | null;
      /** With `tls`: the real name may be another one, encrypted (RFC 9849). */
      readonly ech?: boolean;
      /** With `http`: name without its port, lower case; null if there is none. */
      readonly http_host?: string | null;
    }
  /**
   * Something that has no way out was tried: told by the guest, which may lie or keep silent. Only `forged-request` was seen
   * by the link process: the guest asked for something in a way in which its guest agent never does.
   */
  | {
      readonly kind: 'other';
      readonly what: 'udp' | 'raw-socket' | 'packet-socket' | 'other-family' | 'forged-request';
      readonly address?: string;
      readonly port?: number;
    };

/** `ct/egress/decision`: one event of the network. */
export interface EgressInput {
  readonly version: typeof INPUT_VERSION;
  readonly run: RunFacts;
  /** The step that runs; `network` is false where the job file says `network: none`. */
  readonly step?: { readonly index: number; readonly name: string; readonly network: boolean };
  /** What admission gave the run. */
  readonly network: { readonly mode: NetworkMode; readonly allow: DestinationIndex };
  readonly request: EgressRequest;
}

/**
 * Destinations by what they are looked up by, so that ten thousand cost as much as ten. Key of `exact` and `below`: a name or
 * address; of `below` without its `*.`. Values: the destinations with that host.
 */
export interface DestinationIndex {
  readonly exact: Readonly<Record<string, readonly Destination[]>>;
  readonly below: Readonly<Record<string, readonly Destination[]>>;
  /** Those with host `*`. */
  readonly any: readonly Destination[];
}
