/**
 * Which decisions about the network a security team hears of: those that ended a run, those about what the operator listed as
 * forbidden, and signs that a guest was taken over. That a job may not reach something that nobody listed is in its log and its decision log.
 */
import { type Alert, type AlertSink, alertRun, newAlert } from '../audit/alert.ts';
import type { RunFacts } from '../policy/input.ts';
import type { EgressGateOptions } from './egress-gate.ts';
import { destinationOf } from './egress-gate.ts';
import type { ProcessOrigin } from './egress-messages.ts';

/** How long an alert waits for word of the process; the VM of a run that was ended is gone meanwhile. */
const HOLD_MS = 1500;
/** Of one run; more do not wait. */
const MAX_HELD = 100;

/** Rules of policies/ct/egress.rego about lists of the operator, credentials of the machine, or a guest that was taken over. */
const SEVERITIES: ReadonlyMap<string, Alert['severity']> = new Map([
  ['ct.egress.banned', 'critical'],
  ['ct.egress.metadata', 'high'],
  ['ct.egress.forged_request', 'high'],
  ['ct.egress.blocked', 'medium'],
]);

/** Undefined if nobody needs to hear of it. `evidence`: the decision log of the run. */
export function egressAlert(
  denied: Parameters<EgressGateOptions['onDenial']>[0],
  run: RunFacts & { readonly id: string },
  evidence: string,
  now: Date,
): Alert | undefined {
  const { request, denial, decision, step, count, id, asker } = denied;
  const severity = SEVERITIES.get(denial.rule) ?? (decision.action === 'terminate' ? 'high' : undefined);
  if (severity === undefined) return undefined;
  const { host, port } = destinationOf(request);
  return newAlert(
    now,
    {
      severity,
      title: denial.message,
      rule: denial.rule,
      action: ({ allow: 'recorded', deny: 'denied', terminate: 'terminated' } as const)[decision.action],
      run: alertRun(run, step),
      ...(host === undefined
        ? {}
        : {
            destination: {
              host,
              ...(port === undefined ? {} : { port }),
              ...(request.kind === 'stream' ? { protocol: request.protocol } : {}),
            },
          }),
      ...(asker.by === undefined ? {} : { process: asker.by }),
      evidence: { file: evidence, id },
    },
    count,
  );
}

/** Alerts of one run on their way to where they are filed: one that does not name its process yet is held for a moment. */
export class EgressAlerts implements Disposable {
  readonly #sink: AlertSink;
  readonly #held = new Map<number, { readonly alerts: Alert[]; readonly timer: NodeJS.Timeout }>();
  readonly #isOnRecord: boolean;

  /** `isOnRecord`: the guest records who connects; without that there is nothing to wait for. */
  constructor(sink: AlertSink, isOnRecord: boolean) {
    this.#sink = sink;
    this.#isOnRecord = isOnRecord;
  }

  /** `question`: that of the link process which led to it. */
  file(question: number, alert: Alert): void {
    const held = this.#held.get(question);
    if (held) held.alerts.push(alert);
    else if (!this.#isOnRecord || alert.process || this.#held.size >= MAX_HELD) this.#sink.file(alert);
    else {
      const timer = setTimeout(() => this.#release(question), HOLD_MS);
      this.#held.set(question, { alerts: [alert], timer });
    }
  }

  /** Whose question it was. */
  origin(question: number, by: ProcessOrigin): void {
    this.#release(question, by);
  }

  /** The run is over: files what is held. */
  [Symbol.dispose](): void {
    for (const question of [...this.#held.keys()]) this.#release(question);
  }

  #release(question: number, by?: ProcessOrigin): void {
    const held = this.#held.get(question);
    if (!held) return;
    clearTimeout(held.timer);
    this.#held.delete(question);
    for (const alert of held.alerts) this.#sink.file(by ? { ...alert, process: by } : alert);
  }
}
