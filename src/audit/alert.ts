/** Alerts: what a security team wants to hear of, once. */
import { randomUUID } from 'node:crypto';
import type { RunFacts } from '../policy/input.ts';

/** One of them: a line of JSON in the alert file; version 1. */
export interface Alert {
  readonly version: 1;
  /** Unique; receivers drop what they have seen. */
  readonly id: string;
  /** RFC 3339, UTC. */
  readonly time: string;
  readonly severity: 'low' | 'medium' | 'high' | 'critical';
  /** A sentence for a person. */
  readonly title: string;
  /** Of policy: `ct.egress.banned`. */
  readonly rule: string;
  readonly action: 'recorded' | 'denied' | 'terminated';
  readonly run: {
    readonly id: string;
    readonly job: string;
    readonly repository?: string;
    readonly ref?: string;
    readonly actor?: string;
    readonly step?: string;
  };
  /** Who did it, where that is known. */
  readonly process?: { readonly pid: number; readonly binary: string; readonly arguments?: string };
  /** What it was about, where that is a file: its path in the VM, and `sha256:…` where that was computed. */
  readonly file?: { readonly path: string; readonly digest?: string } | undefined;
  readonly destination?: { readonly host: string; readonly port?: number; readonly protocol?: string };
  /** Where the proof lies: a file and what to look for in it. */
  readonly evidence: { readonly file: string; readonly id: string };
  /** How often it happened in this run so far, this time included. */
  readonly count: number;
}

/** Where alerts go. Filing never throws and never waits: whoever files one has a VM to kill. */
export interface AlertSink {
  file(alert: Alert): void;
}

/** With an id and a time of its own. */
export function newAlert(
  at: Date,
  about: Omit<Alert, 'version' | 'id' | 'time' | 'count'>,
  count = 1,
): Alert {
  return { version: 1, id: randomUUID(), time: at.toISOString(), ...about, count };
}

/** Of what no run did: the image stands in its place. */
export function imageInPlaceOfRun({
  name,
  digest,
}: {
  readonly name: string;
  readonly digest: string;
}): Alert['run'] {
  return { id: digest, job: `image ${name}` };
}

/** The run of an alert, without what is not known of it. */
export function alertRun(
  { id, job, repository, ref, actor }: RunFacts & { readonly id: string },
  step?: string,
): Alert['run'] {
  return {
    id,
    job,
    ...(repository === undefined ? {} : { repository }),
    ...(ref === undefined ? {} : { ref }),
    ...(actor === undefined ? {} : { actor }),
    ...(step === undefined ? {} : { step }),
  };
}
