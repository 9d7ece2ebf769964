/**
 * What follows for a run from what `ct.exec` says of its code: an entry in the decision log, a line in the log of the job, and its
 * end, if the rule says so. The first time for each file: a build that loads a library a thousand times has done one thing.
 */
import type { Candidate } from '../audit/detection/candidates.ts';
import { printable } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import type { DecisionMeta } from '../policy/decision.ts';
import type { DetectEvent, DetectInput, Finding } from '../policy/detection.ts';
import type { RunEvent } from '../protocol/run.ts';

/** Files that the log of a job and its decision log name; the audit record has all of them. */
const MAX_FILES = 100;
/** How rules about code begin. */
export const CODE_PACKAGE = 'ct.exec.';
/** What the guest's kernel refuses or records because of the settings of a run. */
const CODE: readonly string[] = ['exec', 'script', 'library', 'mprotect', 'inline'];
const ACTIONS = { record: 'recorded', alert: 'denied', terminate: 'terminated' } as const;

/** The run that is judged. */
export interface JudgedRun {
  /** Something for the log of the job. */
  tell(event: RunEvent): void;
  /** Policy ends the run. */
  terminate(error: CtError): void;
}

export interface CodeVerdictsOptions {
  readonly run: string;
  /** Puts a decision on record. */
  readonly record: (input: DetectInput, finding: Finding, meta: DecisionMeta) => void;
}

export class CodeVerdicts {
  readonly #options: CodeVerdictsOptions;
  readonly #known = new Set<string>();

  constructor(options: CodeVerdictsOptions) {
    this.#options = options;
  }

  /** `findings`: the answer to `question`, which was about `batch`; undefined: there was none. */
  take(
    question: DetectInput,
    batch: readonly Candidate[],
    { findings, meta }: { readonly findings: readonly Finding[] | undefined; readonly meta: DecisionMeta },
    run: JudgedRun,
  ): void {
    if (findings === undefined && question.code?.mode === 'terminate' && batch.some(isRefusedCode)) {
      run.terminate(
        new CtError('POLICY_VIOLATION', 'code was refused in the VM, and policy gave no answer about it', {
          hint: `what it was: ct audit show ${this.#options.run}`,
        }),
      );
    }
    for (const finding of findings ?? []) {
      const event = batch[finding.event]?.event;
      if (event && finding.rule.startsWith(CODE_PACKAGE)) this.#take(question, event, finding, meta, run);
    }
  }

  #take(
    question: DetectInput,
    event: DetectEvent,
    finding: Finding,
    meta: DecisionMeta,
    run: JudgedRun,
  ): void {
    const { rule, action, hint } = finding;
    const path = pathOf(event);
    const key = JSON.stringify([rule, action, path]);
    const isEnd = action === 'terminate';
    if (this.#known.has(key) && !isEnd) return;
    if (this.#known.size >= MAX_FILES && !isEnd) {
      if (this.#known.size === MAX_FILES) {
        this.#known.add('');
        const message = `there was more code that nobody vouches for; all of it: ct audit show ${this.#options.run}`;
        run.tell({ type: 'notice', level: 'warning', message });
      }
      return;
    }
    this.#known.add(key);
    try {
      this.#options.record({ ...question, events: [event] }, { ...finding, event: 0 }, meta);
    } catch {
      // The decision log is full; the audit record has it, and what follows from it follows.
    }
    const message = printable(finding.message);
    run.tell({
      type: 'code',
      action: ACTIONS[action],
      path: printable(path),
      rule,
      message,
      ...(hint === undefined ? {} : { hint: printable(hint) }),
    });
    if (!isEnd) return;
    run.terminate(
      new CtError('POLICY_VIOLATION', `${message}: the job was ended by the rule ${rule}`, {
        hint: hint === undefined ? undefined : printable(hint),
      }),
    );
  }
}

function isRefusedCode({ event }: Candidate): boolean {
  return event.kind === 'denied' && event.denied.refused && CODE.includes(event.denied.what);
}

function pathOf(event: DetectEvent): string {
  if (event.kind === 'packages') return event.packages.path;
  return event.kind === 'denied' ? event.denied.path : '';
}
