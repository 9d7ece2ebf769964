/** `ct/detect/decision`, version 1: what is asked about the events of a run, and what is answered. Names are those of the JSON. */
import type { CodeOrigin, CodePolicyMode } from '../protocol/code.ts';
import type { RunFacts } from './input.ts';

/** What follows from a finding. */
export const DETECT_ACTIONS = ['off', 'alert', 'terminate'] as const;
export type DetectAction = (typeof DETECT_ACTIONS)[number];

/** What can be wrong with packages that were to be checked against their lock file. */
export const PACKAGE_PROBLEMS = ['no-lock', 'changed', 'no-digest', 'mismatch'] as const;
export type PackageProblem = (typeof PACKAGE_PROBLEMS)[number];

/** A process that another one reaches for. `descendant`: it, or what started it, was started by that one. */
export type ProcessRelation = 'self' | 'descendant' | 'other';

export interface DetectProgram {
  /** Path of what it runs; empty if unknown. */
  readonly binary: string;
  /** Name of the binary, or of the script that an interpreter runs. The job chooses names: they excuse, and prove nothing. */
  readonly program: string;
  readonly uid: number;
}

export interface DetectProcess extends DetectProgram {
  readonly parent?: DetectProgram;
  /** Of stdin, stdout and stderr, those that are connected sockets: 0, 1, 2. */
  readonly sockets: readonly number[];
  /** `host:port` to which it, or what it was forked from, connected; the latest. */
  readonly connections: readonly string[];
}

export type DetectEvent = { readonly process: DetectProcess } & (
  | {
      readonly kind: 'exec';
      readonly exec: {
        readonly path: string;
        readonly args: readonly string[];
        /** SHA-256 in hex, where it was computed. */
        readonly digest?: string;
        /** Where its user was another one before: that one, and what it ran then. */
        readonly earlier?: { readonly uid: number; readonly binary: string };
      };
    }
  | {
      readonly kind: 'connect';
      /** `host`: the name that was asked for, else the address. */
      readonly connect: {
        readonly host: string;
        readonly address: string;
        readonly port: number;
        readonly protocol: number;
      };
    }
  | {
      readonly kind: 'file';
      readonly file: {
        readonly what: 'read' | 'write' | 'unlink' | 'rename' | 'setuid';
        readonly path: string;
        readonly flags: number;
        /** With paths below /proc/PID: whose they are. */
        readonly target?: ProcessRelation;
      };
    }
  | {
      readonly kind: 'denied';
      readonly denied: {
        readonly what: string;
        readonly path: string;
        /** False: it was let through, and is only recorded. */
        readonly refused: boolean;
        /** The command line of the process. */
        readonly args: readonly string[];
        /** SHA-256 in hex, where it was computed. */
        readonly digest?: string;
      };
    }
  | {
      readonly kind: 'packages';
      readonly packages: {
        readonly manager: string;
        readonly problem: PackageProblem;
        /** What is not as it should be: a file of the workspace, or a package. */
        readonly path: string;
      };
    }
  | {
      readonly kind: 'syscall';
      readonly syscall: { readonly name: string; readonly target: ProcessRelation };
    }
);

export interface DetectInput {
  readonly version: 1;
  readonly run: RunFacts;
  /** What earlier runs of the job did; null: there is nothing to compare with. */
  readonly baseline: { readonly destinations: readonly string[] } | null;
  /** Which code may run; absent: nothing is judged. */
  readonly code?: {
    readonly mode: Exclude<CodePolicyMode, 'off'>;
    readonly trust: Readonly<Record<CodeOrigin, boolean>>;
  };
  readonly events: readonly DetectEvent[];
}

export interface Finding {
  /** Index in `events`. */
  readonly event: number;
  /** `ct.detect.reverse_shell`; stable: alerts are told apart by it. */
  readonly rule: string;
  readonly severity: 'low' | 'medium' | 'high' | 'critical';
  /** A sentence for a person. */
  readonly message: string;
  /** The next step for whoever wrote the job. */
  readonly hint?: string;
  /** `record`: no more than said in the log of the job. */
  readonly action: Exclude<DetectAction, 'off'> | 'record';
}

const MAX_FINDINGS = 10_000;
/** Messages hold a path and the name of a program. */
const MAX_TEXT = 16_384;
const SEVERITIES: readonly unknown[] = ['low', 'medium', 'high', 'critical'];

/** The findings, or undefined if `value` is no answer about `events` events: then nothing was judged, and that has to be said. */
export function parseFindings(value: unknown, events: number): readonly Finding[] | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { findings } = value as { findings?: unknown };
  if (!Array.isArray(findings) || findings.length > MAX_FINDINGS) return undefined;
  return findings.every((finding) => isFinding(finding, events)) ? findings : undefined;
}

function isFinding(value: unknown, events: number): value is Finding {
  if (typeof value !== 'object' || value === null) return false;
  const { event, rule, severity, message, action, hint, ...rest } = value as Readonly<
    Record<string, unknown>
  >;
  const isText = (text: unknown): boolean =>
    typeof text === 'string' && text.length > 0 && text.length <= MAX_TEXT;
  return (
    Object.keys(rest).length === 0 &&
    Number.isInteger(event) &&
    (event as number) >= 0 &&
    (event as number) < events &&
    isText(rule) &&
    SEVERITIES.includes(severity) &&
    isText(message) &&
    (hint === undefined || isText(hint)) &&
    (action === 'record' || action === 'alert' || action === 'terminate')
  );
}
