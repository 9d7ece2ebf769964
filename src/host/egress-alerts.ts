/**
 * Which decisions about the network a security team hears of: those that ended a run, those about what the operator listed as
 * forbidden, and signs that a guest was taken over. That a job may not reach something that nobody listed is in its log and its decision log.
 */
import { randomUUID } from 'node:crypto';
import { type Alert, alertRun } from '../audit/alert.ts';
import type { RunFacts } from '../policy/input.ts';
import type { EgressGateOptions } from './egress-gate.ts';
import { destinationOf } from './egress-gate.ts';

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
  const { request, denial, decision, step, count, id } = denied;
  const severity = SEVERITIES.get(denial.rule) ?? (decision.action === 'terminate' ? 'high' : undefined);
  if (severity === undefined) return undefined;
  const { host, port } = destinationOf(request);
  return {
    version: 1,
    id: randomUUID(),
    time: now.toISOString(),
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
    evidence: { file: evidence, id },
    count,
  };
}
