/** `ct policy check`: what policy says to jobs, without running them. */
import { resolve } from 'node:path';
import { CtError, EXIT_STATUS } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { loadJobs } from '../../../job/load.ts';
import { type PlannedJob, planJobs, toJobRequest } from '../../../job/plan.ts';
import type { JobOrigin } from '../../../protocol/network.ts';
import { policyNotice } from '../../before-images.ts';
import type { ParsedOptions } from '../../command.ts';
import { anyHost } from '../../host.ts';
import { imageInputs } from '../../images.ts';
import { findOrigin } from '../../origin.ts';
import type { Output } from '../../output.ts';
import { PolicySources } from '../../policy-source.ts';
import { styleFor } from '../../render/format.ts';
import { type CheckedJob, checkedJobJson, checkedJobText } from '../../render/policy.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const loaded = loadJobs(resolve(parsed.value('directory') ?? '.'));
  const { jobs } = planJobs(loaded, { targets: parsed.positionals });
  const host = await anyHost();
  const notice = await policyNotice(host, process.env);
  if (notice !== undefined) output.write('stderr', `warning: ${notice}\n`);
  const [policy, origin, images] = await Promise.all([
    host.policy(),
    originOf(loaded.root, parsed.value('trust')),
    imagesOf(jobs, loaded.root),
  ]);
  const sources = new PolicySources(policy.directory);
  const checked: CheckedJob[] = [];
  for (const job of jobs) {
    const image = images.get(job.image) ?? job.image;
    const answer = await host.checkPolicy(toJobRequest(job, { image, sendsTree: true, origin }));
    const denials = answer.decision.denials.map((denial) => {
      const source = sources.ruleOf(denial);
      return { ...denial, ...(source ? { source } : {}) };
    });
    checked.push({ name: job.name, image: job.image, ...answer, denials });
  }
  const allowed = checked.every(({ decision }) => decision.allow);
  if (parsed.has('json')) {
    const document = { version: 1, policy: policy.revision, allowed, jobs: checked.map(checkedJobJson) };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
  } else {
    const style = styleFor(output.isTty.stdout);
    output.write('stdout', checked.map((job) => checkedJobText(job, style)).join('\n'));
  }
  const unbuilt = new Set(jobs.map(({ image }) => image).filter((image) => !images.has(image)));
  for (const image of unbuilt) {
    output.write(
      'stderr',
      `the image ${image} is not built: policy was asked about its name, not its digest\n`,
    );
  }
  return allowed ? 0 : EXIT_STATUS.policy;
}

async function originOf(root: string, trust: string | undefined): Promise<JobOrigin> {
  const origin = await findOrigin(root);
  return trust === undefined ? origin : { ...origin, trust: trust as JobOrigin['trust'] };
}

/** Digest per image; of those that are not built, there is none: a check builds nothing. Throws IMAGE_NOT_FOUND. */
async function imagesOf(
  jobs: readonly PlannedJob[],
  directory: string,
): Promise<ReadonlyMap<string, string>> {
  const { currentImage } = await import('../../../image/build.ts');
  const images = new Map<string, string>();
  for (const name of new Set(jobs.map(({ image }) => image))) {
    const digest = await currentImage(imageInputs(name, { ctHome: ctHomePath(), directory })).then(
      (current) => current?.digest,
      (error) => foreignDigest(name, error),
    );
    if (digest !== undefined) images.set(name, digest);
  }
  return images;
}

/** Of an image that was imported or pulled. Throws `error` if there is none. */
async function foreignDigest(name: string, error: unknown): Promise<string> {
  const { ImageStore } = await import('../../../image/store.ts');
  const stored = isNotFound(error) ? await new ImageStore(ctHomePath()).find(name) : undefined;
  if (stored === undefined) throw error;
  return stored.digest;
}

function isNotFound(error: unknown): boolean {
  return error instanceof CtError && error.code === 'IMAGE_NOT_FOUND';
}
