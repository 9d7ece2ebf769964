/** Decisions of an OPA server. Whatever goes wrong on the way is a denial that says so. */
import { Agent as HttpAgent, request as httpRequest } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { messageOf } from '../core/errors.ts';
import {
  type AdmissionDecision,
  type Decided,
  type EgressDecision,
  failedAdmission,
  failedEgress,
  failedImage,
  type ImageDecision,
  parseAdmissionDecision,
  parseEgressDecision,
  parseImageDecision,
} from '../policy/decision.ts';
import type { DetectInput } from '../policy/detection.ts';
import {
  type Detected,
  decided,
  detected,
  egressInput,
  type PolicyEngine,
  withoutId,
} from '../policy/engine.ts';
import type { AdmissionInput, EgressInput, Entrypoint, ImageInput } from '../policy/input.ts';
import { MAX_OPA_ANSWER_BYTES, questionBody, questionUrl, readAnswer } from '../policy/remote.ts';
import {
  failedVerify,
  parseVerifyDecision,
  type VerifyDecision,
  type VerifyInput,
} from '../policy/verify.ts';

/** A decision takes a millisecond; a job's connection waits for this one. */
const DEFAULT_TIMEOUT_MS = 2000;
/** Connections at a time; further questions wait for one, inside their own time. */
const MAX_CONNECTIONS = 16;

export interface OpaClientOptions {
  readonly url: string;
  /** Of this host's own data: the server does not say what it decides by. */
  readonly revision: string;
  readonly timeoutMs?: number;
}

/** Disposal closes idle connections; a question that is open then is denied. */
export class OpaClient implements PolicyEngine, Disposable {
  readonly revision: string;
  readonly #options: OpaClientOptions;
  readonly #agent: HttpAgent | HttpsAgent;
  readonly #closed = new AbortController();

  constructor(options: OpaClientOptions) {
    this.#options = options;
    this.revision = options.revision;
    const agent = { keepAlive: true, maxSockets: MAX_CONNECTIONS };
    this.#agent = options.url.startsWith('https:') ? new HttpsAgent(agent) : new HttpAgent(agent);
  }

  async decideAdmission(input: AdmissionInput): Promise<Decided<AdmissionDecision>> {
    const seen = { ...input, run: withoutId(input.run) };
    const { result, meta } = await this.#ask('ct/admission/decision', seen);
    return decided(result, meta, parseAdmissionDecision, failedAdmission);
  }

  async decideEgress(input: EgressInput): Promise<Decided<EgressDecision>> {
    const { result, meta } = await this.#ask('ct/egress/decision', egressInput(input));
    return decided(result, meta, parseEgressDecision, failedEgress);
  }

  async detect(input: DetectInput): Promise<Detected> {
    const { result, meta } = await this.#ask('ct/detect/decision', { ...input, run: withoutId(input.run) });
    return detected(result, meta, input);
  }

  async decideImage(input: ImageInput): Promise<Decided<ImageDecision>> {
    const { result, meta } = await this.#ask('ct/image/decision', { ...input, run: withoutId(input.run) });
    return decided(result, meta, parseImageDecision, failedImage);
  }

  async decideVerify(input: VerifyInput): Promise<Decided<VerifyDecision>> {
    const { result, meta } = await this.#ask('ct/verify/decision', { ...input, run: withoutId(input.run) });
    return decided(result, meta, parseVerifyDecision, failedVerify);
  }

  [Symbol.dispose](): void {
    this.#closed.abort();
    this.#agent.destroy();
  }

  async #ask(
    path: Entrypoint,
    input: object,
  ): Promise<{ readonly result: unknown; readonly meta: Decided<unknown>['meta'] }> {
    const began = process.hrtime.bigint();
    const timeoutMs = this.#options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const timeout = AbortSignal.timeout(timeoutMs);
    let answer: ReturnType<typeof readAnswer>;
    try {
      const { status, body } = await this.#post(
        path,
        questionBody(input),
        AbortSignal.any([timeout, this.#closed.signal]),
      );
      answer = readAnswer(status, body);
    } catch (error) {
      answer = {
        error: timeout.aborted
          ? `the OPA server did not answer within ${timeoutMs} ms`
          : `the OPA server cannot be asked: ${messageOf(error)}`,
      };
    }
    const meta = { path, revision: this.revision, evaluation_ns: Number(process.hrtime.bigint() - began) };
    return 'error' in answer
      ? { result: undefined, meta: { ...meta, error: answer.error } }
      : { result: answer.result, meta };
  }

  #post(
    path: Entrypoint,
    body: string,
    signal: AbortSignal,
  ): Promise<{ readonly status: number; readonly body: string }> {
    const url = questionUrl(this.#options.url, path);
    const { promise, resolve, reject } = Promise.withResolvers<{ status: number; body: string }>();
    const send = url.protocol === 'https:' ? httpsRequest : httpRequest;
    const request = send(url, {
      method: 'POST',
      agent: this.#agent,
      signal,
      headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
    });
    request.once('error', reject);
    request.once('response', (response) => {
      const chunks: Buffer[] = [];
      let bytes = 0;
      response.on('data', (chunk: Buffer) => {
        bytes += chunk.length;
        if (bytes > MAX_OPA_ANSWER_BYTES) {
          response.destroy(new Error(`its answer is larger than ${MAX_OPA_ANSWER_BYTES} bytes`));
        } else chunks.push(chunk);
      });
      response.once('error', reject);
      response.once('close', () => reject(new Error('its answer was cut off')));
      response.once('end', () =>
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString('utf8') }),
      );
    });
    request.end(body);
    return promise;
  }
}
