/** `ct policy learn`: the smallest `network:` that runs needed. */
import { isPresetName, PRESET_NAMES, resolvePresets } from '../../../egress/presets/index.ts';
import type { Destination } from '../../../policy/destination.ts';
import { learnNetwork } from '../../../policy/learn.ts';
import type { ParsedOptions } from '../../command.ts';
import { type EgressEntry, readDecisions } from '../../decisions.ts';
import { anyHost } from '../../host.ts';
import type { Output } from '../../output.ts';
import { oneLine } from '../../render/format.ts';
import { learnedYaml } from '../../render/policy.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const host = await anyHost();
  const entries: EgressEntry[] = [];
  const runs = new Map<string, string>();
  for (const reference of parsed.positionals) {
    const { run, job } = await host.run(reference);
    if (runs.has(run)) continue;
    runs.set(run, `${job} (${run})`);
    const log = readDecisions(await host.decisions(run));
    entries.push(...log.egress);
    if (log.isFull) {
      output.write('stderr', `run ${oneLine(run)} used up its decisions: what it tried later is not here\n`);
    }
  }
  const repositories = new Set(entries.map(({ input }) => input.run.repository));
  const [repository] = repositories;
  const learned = learnNetwork(entries, await configuredPresets(entries));
  output.write(
    'stdout',
    learnedYaml(learned, {
      runs: [...runs.values()],
      repository: repositories.size === 1 ? repository : undefined,
    }),
  );
  return 0;
}

/** What presets stand for here; those that this machine has no client for stand for nothing. */
async function configuredPresets(
  entries: readonly EgressEntry[],
): Promise<ReadonlyMap<string, readonly Destination[]>> {
  // Clients are asked only if there is something that could be theirs and is not known to be.
  if (entries.every(({ decision }) => isPresetName(decision.allowed_by ?? ''))) return new Map();
  const resolved = await Promise.allSettled(PRESET_NAMES.map((name) => resolvePresets([name])));
  return new Map(
    resolved.flatMap((result) =>
      result.status === 'fulfilled'
        ? result.value.map(({ name, destinations }): [string, readonly Destination[]] => [name, destinations])
        : [],
    ),
  );
}
