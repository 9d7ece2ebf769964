/** Whether a job may run, and with what network: asked before it takes anything of this host. Decided by policy alone. */
import { CtError } from '../core/errors.ts';
import type { PresetResolution, PresetResolver } from '../egress/presets/index.ts';
import { secretNames } from '../job/planned-job.ts';
import { type AdmissionDecision, codeSettings, type Decided } from '../policy/decision.ts';
import { type Destination, indexDestinations, parseDestination } from '../policy/destination.ts';
import { type AdmissionInput, type DestinationIndex, INPUT_VERSION, type RunFacts } from '../policy/input.ts';
import type { AuditMode } from '../protocol/audit.ts';
import type { CodeSettings } from '../protocol/code.ts';
import type { GuestNetworkSettings, NetworkMode } from '../protocol/network.ts';
import type { JobRequest } from '../protocol/run.ts';
import type { CurrentPolicy, HostPolicy } from './policy.ts';

/** Who asks, by the word of the kernel. */
export interface Applicant {
  /** Name of the user at the other end of the connection. */
  readonly user: string;
}

export interface AdmissionOptions {
  readonly policy: HostPolicy;
  readonly presets: Pick<PresetResolver, 'resolve' | 'guestSettings'>;
}

/** What policy was asked about a job, and its answer. */
export interface Consideration {
  readonly policy: CurrentPolicy;
  readonly input: AdmissionInput;
  readonly decided: Decided<AdmissionDecision>;
  readonly presets: readonly PresetResolution[];
}

/** What a job that was let in gets. */
export interface Grant {
  readonly audit: AuditMode;
  readonly mode: NetworkMode;
  readonly allow: DestinationIndex;
  /** Something can be reached: what no rule allows passes in mode `audit`. */
  readonly hasNetwork: boolean;
  /** Which code may run; absent: all. */
  readonly code?: CodeSettings;
  /** For clients in the guest; absent without a network. */
  readonly settings?: GuestNetworkSettings;
  /** For whoever started the job. */
  readonly notices: readonly string[];
}

/**
 * Asks policy. Throws POLICY_INVALID or POLICY_UNAVAILABLE if there is none, PRESET_UNCONFIGURED for a preset that this host
 * cannot resolve, JOB_FILE_INVALID for an entry that is no destination. A denial is an answer.
 */
export async function consider(
  request: JobRequest,
  image: { readonly name: string; readonly digest: string },
  applicant: Applicant,
  { policy, presets: resolver }: AdmissionOptions,
  runId?: string,
): Promise<Consideration> {
  const current = await policy.current();
  const { ask, presets } = await lower(request.network?.allow ?? [], resolver);
  const mode = request.network?.mode;
  const input: AdmissionInput = {
    version: INPUT_VERSION,
    run: runFacts(request, applicant, runId),
    image,
    resources: {
      cpus: request.cpus,
      memory_mib: request.memoryMib,
      disk_mib: request.diskMib,
      timeout_seconds: Math.ceil(request.timeoutMs / 1000),
    },
    secrets: secretNames(request),
    network: { ...(mode === undefined ? {} : { mode }), ask },
    ...(request.exec === undefined ? {} : { exec: { mode: request.exec } }),
  };
  return { policy: current, input, decided: await current.engine.decideAdmission(input), presets };
}

/** Throws POLICY_DENIED with every reason, or POLICY_UNAVAILABLE if there was no answer. */
export async function grantOf(
  { decided, presets }: Consideration,
  { presets: resolver }: AdmissionOptions,
): Promise<Grant> {
  const { decision, meta } = decided;
  if (!decision.allow) throw denial(decision, meta.error);
  const { mode, allow } = decision.network;
  const { audit = 'required' } = decision; // it is there if the job is allowed
  const code = decision.code && codeSettings(decision.code);
  const notices = presets.flatMap((preset) => preset.notices);
  const granted = {
    audit,
    mode,
    hasNetwork: allow.length > 0 || mode === 'audit',
    // Digests of signed code: the caller's, who has verified them.
    ...(code && { code: { ...code, digests: [] } }),
  };
  if (allow.length === 0) return { ...granted, allow: indexDestinations([]), notices };
  const guest = await resolver.guestSettings(presets);
  return {
    ...granted,
    allow: indexDestinations(allow),
    settings: guest.settings,
    notices: [...notices, ...guest.notices],
  };
}

/** The claims of a request, where they are claims: whoever works at this machine is known by the user. */
function runFacts(request: JobRequest, { user }: Applicant, id: string | undefined): RunFacts {
  const origin = request.origin ?? { trust: 'local' };
  return {
    ...(id === undefined ? {} : { id }),
    job: request.name,
    ...origin,
    ...(origin.trust === 'local' ? { actor: user } : {}),
  };
}

async function lower(
  entries: readonly string[],
  resolver: AdmissionOptions['presets'],
): Promise<{ ask: Destination[]; presets: PresetResolution[] }> {
  const ask: Destination[] = [];
  const names: string[] = [];
  for (const entry of entries) {
    const parsed = parseDestination(entry);
    if ('wrong' in parsed)
      throw new CtError('JOB_FILE_INVALID', `network: ${parsed.wrong}`, { hint: parsed.hint });
    if (parsed.kind === 'preset') names.push(parsed.name);
    else ask.push(...parsed.destinations);
  }
  const presets = names.length === 0 ? [] : await resolver.resolve(names);
  ask.push(...presets.flatMap(({ destinations }) => destinations));
  return { ask, presets };
}

function denial({ denials }: AdmissionDecision, error: string | undefined): CtError {
  const messages = denials.map(({ message, rule }) => `${message} (rule ${rule})`);
  const hints = [...new Set(denials.flatMap(({ hint }) => hint ?? []))];
  return new CtError(error === undefined ? 'POLICY_DENIED' : 'POLICY_UNAVAILABLE', messages.join('; '), {
    hint: hints.length === 0 ? undefined : hints.join('; '),
  });
}
