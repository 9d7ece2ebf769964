/**
 * Decisions by Rego that was compiled to WebAssembly, evaluated in this process. Pure: the program, the data and the clock are
 * arguments. A decision that cannot be made is a denial that says why; nothing here throws while a job waits.
 */
import { type LoadedPolicy, loadPolicy } from '@open-policy-agent/opa-wasm';
import { CtError, messageOf } from '../core/errors.ts';
import type { PolicyConfig } from './data.ts';
import {
  type AdmissionDecision,
  type Decided,
  type DecisionMeta,
  type EgressDecision,
  failedAdmission,
  failedEgress,
  failedImage,
  type ImageDecision,
  parseAdmissionDecision,
  parseEgressDecision,
  parseImageDecision,
} from './decision.ts';
import { narrowIndex } from './destination.ts';
import { type DetectInput, type Finding, parseFindings } from './detection.ts';
import {
  type AdmissionInput,
  type EgressInput,
  ENTRYPOINTS,
  type Entrypoint,
  type ImageInput,
} from './input.ts';
import { failedVerify, parseVerifyDecision, type VerifyDecision, type VerifyInput } from './verify.ts';

/** What decides. A back end in this process answers at once, one behind a network with a promise that never rejects. */
export interface PolicyEngine {
  /** Digest of policy and data. */
  readonly revision: string;
  decideAdmission(input: AdmissionInput): Decided<AdmissionDecision> | Promise<Decided<AdmissionDecision>>;
  decideEgress(input: EgressInput): Decided<EgressDecision> | Promise<Decided<EgressDecision>>;
  detect(input: DetectInput): Detected | Promise<Detected>;
  decideImage(input: ImageInput): Decided<ImageDecision> | Promise<Decided<ImageDecision>>;
  decideVerify(input: VerifyInput): Decided<VerifyDecision> | Promise<Decided<VerifyDecision>>;
}

/** What is found in a batch of events; undefined: nothing was judged, and `meta.error` says why. */
export interface Detected {
  readonly findings: readonly Finding[] | undefined;
  readonly meta: DecisionMeta;
}

/** Evaluation cannot be interrupted, and its time grows with the input. An event of the network is far smaller. */
const MAX_EGRESS_INPUT_BYTES = 256 * 1024;
/** A host has 253 characters, an address 45. Rules look at every name above a name, so time grows with its square. */
const MAX_REQUEST_TEXT = 512;
/** As many entries as a job may have, at their longest. */
const MAX_ADMISSION_INPUT_BYTES = 4 * 1024 * 1024;
/** A batch of events (src/audit/detect.ts), whose characters may take more than a byte each. */
const MAX_DETECT_INPUT_BYTES = 1024 * 1024;
/** 64 signatures and what they attest, at their longest. */
const MAX_IMAGE_INPUT_BYTES = 1024 * 1024;
/** Paths of the files of some manifests, as long as paths are. */
const MAX_VERIFY_INPUT_BYTES = 4 * 1024 * 1024;
/** Two KiB each, mostly. */
const MAX_CACHED = 2000;
/** Larger ones are rare, and would let a job fill the cache with what nobody asks again. */
const MAX_CACHED_INPUT_LENGTH = 8192;
/** Pages of 64 KiB: 1 GiB holds the largest data file many times over. */
const MAX_MEMORY_PAGES = 16_384;

/**
 * Functions that compiled policies call back for and that OPA's Node package has; the rest of what Rego knows is compiled in,
 * or is not there. All of them are pure.
 */
const PROVIDED = new Set([
  'json.is_valid',
  'regex.split',
  'sprintf',
  'yaml.is_valid',
  'yaml.marshal',
  'yaml.unmarshal',
]);

export interface WasmPolicy {
  readonly wasm: Uint8Array;
  readonly config: PolicyConfig;
  readonly revision: string;
  /** Monotonic, in nanoseconds. */
  readonly nowNs: () => bigint;
}

/**
 * Loads a compiled policy. Throws POLICY_INVALID if it needs functions that are not there (clocks, networks, randomness: the
 * same question must have the same answer), POLICY_UNAVAILABLE if it cannot be loaded or lacks an entry point.
 */
export async function loadWasmEngine(policy: WasmPolicy): Promise<WasmEngine> {
  let loaded: LoadedPolicy;
  try {
    loaded = await loadPolicy(policy.wasm.slice(), { initial: 32, maximum: MAX_MEMORY_PAGES });
  } catch (error) {
    throw new CtError('POLICY_UNAVAILABLE', `the compiled policy cannot be loaded: ${reason(error)}`, {
      cause: error,
    });
  }
  const missing = requiredBuiltins(loaded).filter((name) => !PROVIDED.has(name));
  if (missing.length > 0) {
    throw new CtError(
      'POLICY_INVALID',
      `the policy uses functions that are not available: ${missing.sort().join(', ')}`,
      {
        hint: 'docs/policy.md lists what rules can use; an OPA server (`opa-url`) has all of them',
      },
    );
  }
  const lacking = ENTRYPOINTS.filter((name) => !Object.hasOwn(loaded.entrypoints as object, name));
  if (lacking.length > 0) {
    throw new CtError('POLICY_UNAVAILABLE', `the compiled policy has no entry point ${lacking.join(', ')}`);
  }
  try {
    loaded.setData({ ct: { config: policy.config } });
  } catch (error) {
    throw new CtError('POLICY_UNAVAILABLE', `the policy data cannot be loaded: ${reason(error)}`, {
      cause: error,
    });
  }
  return new WasmEngine(loaded, policy);
}

export class WasmEngine implements PolicyEngine {
  readonly revision: string;
  readonly #policy: LoadedPolicy;
  readonly #nowNs: () => bigint;
  /**
   * Answers by entry point and input as Rego saw it. They may be kept because rules have no clock and no network, and see
   * neither the id of a run nor anything else that is different each time. The least recently used one goes first.
   */
  readonly #cache = new Map<string, unknown>();

  constructor(policy: LoadedPolicy, options: Pick<WasmPolicy, 'revision' | 'nowNs'>) {
    this.#policy = policy;
    this.revision = options.revision;
    this.#nowNs = options.nowNs;
  }

  decideAdmission(input: AdmissionInput): Decided<AdmissionDecision> {
    const seen = { ...input, run: withoutId(input.run) };
    const { result, meta } = this.#evaluate('ct/admission/decision', seen, MAX_ADMISSION_INPUT_BYTES);
    return decided(result, meta, parseAdmissionDecision, failedAdmission);
  }

  decideEgress(input: EgressInput): Decided<EgressDecision> {
    const { result, meta } = this.#evaluate(
      'ct/egress/decision',
      egressInput(input),
      MAX_EGRESS_INPUT_BYTES,
      isTooLong(input.request),
    );
    return decided(result, meta, parseEgressDecision, failedEgress);
  }

  detect(input: DetectInput): Detected {
    const seen = { ...input, run: withoutId(input.run) };
    const { result, meta } = this.#evaluate('ct/detect/decision', seen, MAX_DETECT_INPUT_BYTES);
    return detected(result, meta, input);
  }

  decideImage(input: ImageInput): Decided<ImageDecision> {
    const seen = { ...input, run: withoutId(input.run) };
    const { result, meta } = this.#evaluate('ct/image/decision', seen, MAX_IMAGE_INPUT_BYTES);
    return decided(result, meta, parseImageDecision, failedImage);
  }

  decideVerify(input: VerifyInput): Decided<VerifyDecision> {
    const seen = { ...input, run: withoutId(input.run) };
    const { result, meta } = this.#evaluate('ct/verify/decision', seen, MAX_VERIFY_INPUT_BYTES);
    return decided(result, meta, parseVerifyDecision, failedVerify);
  }

  #evaluate(
    path: Entrypoint,
    input: object,
    maxBytes: number,
    refused = false,
  ): { result: unknown; meta: Decided<unknown>['meta'] } {
    const began = this.#nowNs();
    const meta = (error?: string): Decided<unknown>['meta'] => ({
      path,
      revision: this.revision,
      evaluation_ns: Number(this.#nowNs() - began),
      ...(error === undefined ? {} : { error }),
    });
    const text = JSON.stringify(input);
    const key = `${path} ${text}`;
    const result = this.#cache.get(key);
    if (result !== undefined) {
      this.#cache.delete(key);
      this.#cache.set(key, result);
      return { result, meta: meta() };
    }
    const bytes = new TextEncoder().encode(text);
    if (refused || bytes.length > maxBytes) {
      return { result: undefined, meta: meta('the question is larger than any that is answered') };
    }
    let results: unknown;
    try {
      results = this.#policy.evaluate(bytes.buffer.slice(0, bytes.length), path);
    } catch (error) {
      return { result: undefined, meta: meta(`evaluation failed: ${reason(error)}`) };
    }
    const [first] = Array.isArray(results) && results.length === 1 ? (results as [{ result?: unknown }]) : [];
    if (first?.result === undefined) return { result: undefined, meta: meta(UNDEFINED_RESULT) };
    if (key.length <= MAX_CACHED_INPUT_LENGTH) {
      if (this.#cache.size >= MAX_CACHED) this.#cache.delete(this.#cache.keys().next().value ?? '');
      this.#cache.set(key, first.result);
    }
    return { result: first.result, meta: meta() };
  }
}

function isTooLong(request: EgressInput['request']): boolean {
  return Object.values(request).some((value) => typeof value === 'string' && value.length > MAX_REQUEST_TEXT);
}

export const UNDEFINED_RESULT = 'the answer is undefined';

/** What rules see of an event: of the rules of the run, those that can be about it. */
export function egressInput(input: EgressInput): EgressInput {
  const { request, network } = input;
  const host = request.kind === 'dns' ? request.name : request.kind === 'other' ? '' : request.host;
  return {
    ...input,
    run: withoutId(input.run),
    network: { mode: network.mode, allow: narrowIndex(network.allow, host) },
  };
}

/** An id says nothing that rules could decide by, and it would make every question a new one. */
export function withoutId<R extends { readonly id?: string }>(run: R): Omit<R, 'id'> {
  const { id: _, ...rest } = run;
  return rest;
}

/** The parsed answer; whatever is wrong with it becomes a denial that says so. */
export function decided<D>(
  result: unknown,
  meta: Decided<D>['meta'],
  parse: (value: unknown) => D | undefined,
  failed: (problem: string) => D,
): Decided<D> {
  if (meta.error !== undefined) return { decision: failed(meta.error), meta };
  const decision = parse(result);
  if (decision !== undefined) return { decision, meta };
  const error = 'the answer does not have the form of a decision';
  return { decision: failed(error), meta: { ...meta, error } };
}

/** The parsed answer about a batch of events. */
export function detected(result: unknown, meta: DecisionMeta, { events }: DetectInput): Detected {
  if (meta.error !== undefined) return { findings: undefined, meta };
  const findings = parseFindings(result, events.length);
  if (findings) return { findings, meta };
  return { findings, meta: { ...meta, error: 'the answer does not have the form of findings' } };
}

/** The runtime of OPA keeps them to itself; the program says them again. */
function requiredBuiltins(policy: LoadedPolicy): string[] {
  const { exports } = policy.wasmInstance as unknown as {
    exports: { builtins?: () => number; opa_json_dump?: (address: number) => number };
  };
  const { builtins, opa_json_dump: dump } = exports;
  if (builtins === undefined || dump === undefined) {
    throw new CtError('POLICY_UNAVAILABLE', 'the compiled policy was not made by OPA');
  }
  const start = dump(builtins());
  const memory = new Uint8Array((policy.mem as unknown as { buffer: ArrayBuffer }).buffer);
  return Object.keys(
    JSON.parse(new TextDecoder().decode(memory.subarray(start, memory.indexOf(0, start)))) as object,
  );
}

/** The runtime of OPA throws strings and plain objects, too. */
function reason(error: unknown): string {
  if (typeof error === 'string') return error;
  const message = (error as { message?: unknown } | null)?.message;
  return typeof message === 'string' ? message : messageOf(error);
}
