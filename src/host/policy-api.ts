/** The part of the daemon's API that is about policy (api.ts lists it). Clients are the user's own, and may be wrong. */
import type { Readable } from 'node:stream';
import { CtError } from '../core/errors.ts';
import type { AdmissionDecision, ImageDecision } from '../policy/decision.ts';
import { MAX_JSON_BYTES } from '../protocol/limits.ts';
import { parseJobRequest } from '../protocol/parse-job-request.ts';
import { type AdmissionOptions, type Applicant, consider } from './admission.ts';
import { API_POLICY, API_POLICY_CHECK, type PolicyCheck, type PolicyInfo } from './api.ts';
import type { ImageGate } from './image-gate.ts';
import { demandsOf } from './job-verification.ts';
import type { Machines } from './machines.ts';
import { type Answer, errorAnswer } from './runs-api.ts';

const DIGEST = /^sha256:[0-9a-f]{64}$/;
/** In place of the digest of an image that is not built yet; that of no image. */
const NO_DIGEST = `sha256:${'0'.repeat(64)}`;

interface PolicyApiOptions extends AdmissionOptions {
  readonly machines: Pick<Machines, 'imageName'>;
  readonly imageGate: Pick<ImageGate, 'judge'>;
}

/** Undefined if the request is about something else; an error is an answer. */
export async function answerPolicy(
  method: string,
  target: string,
  body: Readable,
  applicant: Applicant,
  options: PolicyApiOptions,
): Promise<Answer | undefined> {
  try {
    if (method === 'GET' && target === API_POLICY) return { status: 200, body: await info(options) };
    if (method === 'POST' && target === API_POLICY_CHECK) {
      return { status: 200, body: await check(await json(body), applicant, options) };
    }
    return undefined;
  } catch (error) {
    return errorAnswer(error);
  }
}

async function info({ policy }: PolicyApiOptions): Promise<PolicyInfo> {
  const { engine, directory, opaUrl, mode } = await policy.current();
  return {
    revision: engine.revision,
    ...(directory === undefined ? {} : { directory }),
    ...(opaUrl === undefined ? {} : { opaUrl }),
    mode,
  };
}

/** `image` of the request may be a name, too: what is only asked about need not be built. */
async function check(value: unknown, applicant: Applicant, options: PolicyApiOptions): Promise<PolicyCheck> {
  const { image } = (value ?? {}) as { image?: unknown };
  const isDigest = typeof image === 'string' && DIGEST.test(image);
  const request = parseJobRequest(isDigest ? value : { ...(value as object), image: NO_DIGEST });
  const name = isDigest ? await options.machines.imageName(image) : String(image ?? '').slice(0, 300);
  const asked = { name, digest: isDigest ? image : NO_DIGEST };
  const { policy, input, decided, presets } = await consider(request, asked, applicant, options);
  const verify = await demandsOf(request, input.run, policy);
  const verdict = isDigest ? await options.imageGate.judge(image, input.run, policy) : undefined;
  return {
    revision: policy.engine.revision,
    decision: withImage(decided.decision, verdict?.decided.decision),
    presets: presets.map(({ shown }) => shown),
    ...(verify && { verify }),
  };
}

/** A job runs if it and its image are let in; all reasons why not are told at once. */
function withImage(decision: AdmissionDecision, image: ImageDecision | undefined): AdmissionDecision {
  if (image === undefined || image.allow) return decision;
  const { network } = decision;
  return {
    allow: false,
    denials: [...decision.denials, ...image.denials],
    network: { mode: network.mode, allow: [] },
  };
}

async function json(body: Readable): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    bytes += (chunk as Buffer).length;
    if (bytes > MAX_JSON_BYTES) throw new CtError('HOST_PROTOCOL', 'the job request is too large');
    chunks.push(chunk as Buffer);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch (error) {
    throw new CtError('HOST_PROTOCOL', 'the job request is not JSON', { cause: error });
  }
}
