/** `ct policy explain`: every denial of a run, and where the rule behind it stands. */
import type { ParsedOptions } from '../../command.ts';
import { readDecisions, refusalsOf } from '../../decisions.ts';
import { anyHost } from '../../host.ts';
import type { Output } from '../../output.ts';
import { PolicySources } from '../../policy-source.ts';
import { styleFor } from '../../render/format.ts';
import { explanation, type LocatedRefusal, refusalJson } from '../../render/policy.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const host = await anyHost();
  const detail = await host.run(parsed.positionals[0] ?? 'latest');
  const [lines, policy] = await Promise.all([host.decisions(detail.run), host.policy()]);
  const log = readDecisions(lines);
  // Files as they are now say nothing about a policy that was another one then.
  const isSame = log.revisions.every((revision) => revision === policy.revision);
  const sources = isSame ? new PolicySources(policy.directory) : undefined;
  const refusals = refusalsOf(log).map((refusal): LocatedRefusal => {
    const [source, data] = [sources?.ruleOf(refusal.denial), sources?.entryOf(refusal.denial)];
    return { ...refusal, ...(source ? { source } : {}), ...(data ? { data } : {}) };
  });
  if (parsed.has('json')) {
    const { run, job } = detail;
    const { revisions, isFull } = log;
    const document = { version: 1, run, job, policy: revisions, full: isFull };
    output.write(
      'stdout',
      `${JSON.stringify({ ...document, denials: refusals.map(refusalJson) }, undefined, 2)}\n`,
    );
    return 0;
  }
  output.write('stdout', explanation(refusals, styleFor(output.isTty.stdout)));
  if (refusals.length === 0) output.write('stderr', `policy denied nothing to run ${detail.run}\n`);
  if (!isSame) {
    output.write('stderr', 'the policy has changed since: where its rules stood is not known any more\n');
  }
  if (log.isFull)
    output.write('stderr', 'the run used up its decisions: what it tried later is not recorded\n');
  return 0;
}
