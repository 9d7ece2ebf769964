/**
 * The decision log of a run, as the host daemon gives it out: entries as OPA logs decisions (src/policy/log-entry.ts), and one
 * that says how often they were given. Our daemon wrote them; names in them are those that a guest chose.
 */
import {
  type AdmissionDecision,
  type Denial,
  type EgressDecision,
  type ImageDecision,
  parseAdmissionDecision,
  parseEgressDecision,
  parseImageDecision,
} from '../policy/decision.ts';
import { type Finding, parseFindings } from '../policy/detection.ts';
import type { AdmissionInput, EgressInput, ImageInput } from '../policy/input.ts';
import type { Observation } from '../policy/learn.ts';
import { parseVerifyDecision, type VerifyDecision } from '../policy/verify.ts';

export interface DecisionLogView {
  readonly egress: readonly EgressEntry[];
  readonly admission: readonly AdmissionEntry[];
  readonly images: readonly ImageEntry[];
  readonly verifications: readonly VerifyEntry[];
  readonly code: readonly CodeEntry[];
  /** Digests of the policies that decided: one, unless the policy changed meanwhile. */
  readonly revisions: readonly string[];
  /** The run used up its entries: what came later is not here. */
  readonly isFull: boolean;
}

interface Entry {
  readonly id: string;
  /** As logged: RFC 3339. */
  readonly time: string;
}

export interface EgressEntry extends Entry, Observation {
  readonly input: EgressInput;
  readonly decision: EgressDecision;
  readonly count: number;
}

export interface AdmissionEntry extends Entry {
  readonly input: AdmissionInput;
  readonly decision: AdmissionDecision;
}

export interface ImageEntry extends Entry {
  readonly input: ImageInput;
  readonly decision: ImageDecision;
}

/** Whether what the job consists of is vouched for. */
export interface VerifyEntry extends Entry {
  readonly decision: VerifyDecision;
}

/** What was said of code that the job ran, or was to run. */
export interface CodeEntry extends Entry {
  readonly finding: Finding;
}

/** One denial, or what mode `audit` only recorded. */
export interface Refusal {
  readonly id: string;
  readonly time: string;
  readonly step?: string;
  readonly action: 'recorded' | 'denied' | 'terminated';
  readonly count: number;
  readonly denial: Denial;
  /** The request of the network; absent for what kept the job from running. */
  readonly request?: EgressInput['request'];
}

/** Lines that are no entry of a known kind are passed over. */
export function readDecisions(lines: readonly unknown[]): DecisionLogView {
  const counts = new Map<string, number>();
  const egress: EgressEntry[] = [];
  const admission: AdmissionEntry[] = [];
  const images: ImageEntry[] = [];
  const verifications: VerifyEntry[] = [];
  const code: CodeEntry[] = [];
  const revisions = new Set<string>();
  let isFull = false;
  for (const line of lines) {
    if (!isObject(line)) continue;
    if (line['type'] === 'counts') {
      isFull ||= line['full'] === true;
      if (!isObject(line['counts'])) continue;
      for (const [id, count] of Object.entries(line['counts'])) {
        if (Number.isSafeInteger(count)) counts.set(id, count as number);
      }
      continue;
    }
    const { decision_id: id, timestamp: time, path, input, result } = line;
    if (typeof id !== 'string' || typeof time !== 'string' || !isObject(input)) continue;
    if (typeof line['revision'] === 'string') revisions.add(line['revision']);
    if (path === 'ct/egress/decision' && isObject(input['request'])) {
      const decision = parseEgressDecision(result);
      if (decision) egress.push({ id, time, input: input as unknown as EgressInput, decision, count: 1 });
    } else if (path === 'ct/admission/decision') {
      const decision = parseAdmissionDecision(result);
      if (decision) admission.push({ id, time, input: input as unknown as AdmissionInput, decision });
    } else if (path === 'ct/image/decision') {
      const decision = parseImageDecision(result);
      if (decision) images.push({ id, time, input: input as unknown as ImageInput, decision });
    } else if (path === 'ct/verify/decision') {
      const decision = parseVerifyDecision(result);
      if (decision) verifications.push({ id, time, decision });
    } else if (path === 'ct/detect/decision' && Array.isArray(input['events'])) {
      const [finding] = parseFindings(result, input['events'].length) ?? [];
      if (finding) code.push({ id, time, finding });
    }
  }
  return {
    egress: egress.map((entry) => ({ ...entry, count: counts.get(entry.id) ?? 1 })),
    admission,
    images,
    verifications,
    code,
    revisions: [...revisions],
    isFull,
  };
}

/** In the order in which they came. */
export function refusalsOf({ egress, admission, images, verifications, code }: DecisionLogView): Refusal[] {
  const refused = [...admission, ...images, ...verifications].flatMap(({ id, time, decision }) =>
    decision.denials.map((denial): Refusal => ({ id, time, action: 'denied', count: 1, denial })),
  );
  const words = { allow: 'recorded', deny: 'denied', terminate: 'terminated' } as const;
  const denied = egress.flatMap(({ id, time, input, decision, count }): Refusal[] => {
    const { denial, action } = decision;
    if (!denial) return [];
    const step = input.step?.name;
    const { request } = input;
    return [
      { id, time, ...(step === undefined ? {} : { step }), action: words[action], count, denial, request },
    ];
  });
  const run = code.map(({ id, time, finding }): Refusal => {
    const { rule, message, hint, action } = finding;
    return {
      id,
      time,
      action: ({ record: 'recorded', alert: 'denied', terminate: 'terminated' } as const)[action],
      count: 1,
      denial: { rule, message, ...(hint === undefined ? {} : { hint }) },
    };
  });
  const later = [...denied, ...run].toSorted((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : 0));
  return [...refused, ...later];
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null;
}
