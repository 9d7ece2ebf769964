/** What `ct run` finds out before an image is built, which may take minutes. */
import { resolve } from 'node:path';
import { isPresetName } from '../egress/presets/names.ts';
import type { HostClient } from '../host/client.ts';
import type { PlannedJob } from '../job/planned-job.ts';
import type { JobOrigin } from '../protocol/network.ts';

/**
 * Has the presets that jobs name looked up on this host, once for each set of them. Throws PRESET_UNCONFIGURED, POLICY_INVALID.
 * What policy says to a job is said when it begins.
 */
export async function checkPresets(
  jobs: readonly PlannedJob[],
  host: HostClient,
  origin: Promise<JobOrigin>,
): Promise<void> {
  const seen = new Set<string>();
  for (const job of jobs) {
    const presets = (job.network?.allow ?? []).filter(isPresetName).sort().join(' ');
    if (presets === '' || seen.has(presets)) continue;
    seen.add(presets);
    const { toJobRequest } = await import('../job/plan.ts');
    await host.checkPolicy(toJobRequest(job, { image: job.image, sendsTree: true, origin: await origin }));
  }
}

/**
 * A warning if CT_POLICY_DIR of this process is not what the daemon uses, which has read it when it was started; undefined if
 * all is well.
 */
export async function policyNotice(
  host: HostClient,
  env: Readonly<Record<string, string | undefined>>,
): Promise<string | undefined> {
  const named = env['CT_POLICY_DIR'];
  if (!named) return undefined;
  const { directory } = await host.policy();
  if (directory === resolve(named)) return undefined;
  const used = directory === undefined ? 'the policy that ct comes with' : `the policy in ${directory}`;
  return `CT_POLICY_DIR is ${named}, but the host daemon that runs (process ${host.greeting.pid}) uses ${used}: end it, and the next command starts one with yours`;
}
