/** One job on one client connection: read the request, wait for capacity, claim, run, destroy. */
import { randomUUID } from 'node:crypto';
import type { Socket } from 'node:net';
import type { AlertSink } from '../audit/alert.ts';
import { withDeadline } from '../core/deadline.ts';
import { CtError, errorReport, toCtError } from '../core/errors.ts';
import { VERSION } from '../core/version.ts';
import { resultOf } from '../job/outcome.ts';
import type { AdmissionDecision, Decided, EgressDecision, ImageDecision } from '../policy/decision.ts';
import type { DetectInput } from '../policy/detection.ts';
import type { AdmissionInput, EgressInput, ImageInput, RunFacts } from '../policy/input.ts';
import { decisionLogEntry, type FindingDecision } from '../policy/log-entry.ts';
import type { VerifyDecision, VerifyInput } from '../policy/verify.ts';
import { type Evidence, MAX_EVIDENCE_BYTES, parseEvidence } from '../protocol/evidence.ts';
import { MAX_JSON_BYTES } from '../protocol/limits.ts';
import { parseJobRequest } from '../protocol/parse-job-request.ts';
import { encodeChunked, RecordDecoder } from '../protocol/records.ts';
import {
  ClientRecord,
  type ImageStanding,
  type JobRequest,
  type JobResult,
  type RunEvent,
  ServerRecord,
} from '../protocol/run.ts';
import type { EvidenceDemands } from '../protocol/verify.ts';
import type { MachineShape } from '../vmm/driver.ts';
import { type AdmissionOptions, type Applicant, consider, type Grant, grantOf } from './admission.ts';
import { type Capacity, VM_OVERHEAD_MIB } from './capacity.ts';
import { CodeVerdicts } from './code-verdicts.ts';
import type { DecisionLog } from './decision-log.ts';
import type { Dialer } from './dialer.ts';
import { EgressAlerts, egressAlert } from './egress-alerts.ts';
import { EgressGate, type EgressPeer } from './egress-gate.ts';
import {
  corruptAlert,
  type ImageGate,
  type ImageVerdict,
  imageAlert,
  imageRefusal,
  standingOf,
} from './image-gate.ts';
import type { ImageWatch } from './image-watch.ts';
import { type VerifiedJob, verificationAlert, verifyJob } from './job-verification.ts';
import type { Claim, Machines } from './machines.ts';
import type { CurrentPolicy } from './policy.ts';
import { RunAudit } from './run-audit.ts';
import { RunDetections } from './run-detections.ts';
import type { LiveRun, Runs } from './runs.ts';

const REQUEST_TIMEOUT_MS = 30_000;
/** git may have to look at a large tree. */
const EVIDENCE_TIMEOUT_MS = 120_000;
/** Guest memory comes in classes, so that few templates serve many jobs. */
const MEMORY_CLASSES_MIB = [256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384];
const MEMORY_STEP_MIB = 8192;

export interface JobsOptions extends AdmissionOptions {
  readonly machines: Machines;
  readonly capacity: Capacity;
  readonly runs: Runs;
  readonly dialer: Dialer;
  readonly alerts: AlertSink;
  readonly imageGate: Pick<ImageGate, 'judge'>;
  /** Told what was let in, and looks whether it still would be. */
  readonly imageWatch?: Pick<ImageWatch, 'admitted'>;
}

/** Serves one job; never rejects. Returns when nothing of its VM is left. */
export async function serveJob(socket: Socket, applicant: Applicant, options: JobsOptions): Promise<void> {
  const connection = new JobConnection(socket);
  using cleanup = new DisposableStack();
  let run: LiveRun | undefined;
  try {
    const request = await withDeadline(
      connection.request,
      REQUEST_TIMEOUT_MS,
      () => new CtError('HOST_PROTOCOL', 'the client did not send its request in time'),
    );
    run = options.runs.begin(request);
    connection.event({ type: 'queued', run: run.id });
    const log = options.runs.decisions.begin(run.id);
    cleanup.defer(() => log.close());
    const admitted = await admit(connection, { run, request, log }, applicant, options, cleanup);
    const watched = options.imageWatch?.admitted(run, admitted.facts, request.image);
    if (watched) cleanup.use(watched);
    await runAdmitted(connection, admitted, options);
  } catch (error) {
    const result = resultOf(toCtError(error));
    run?.end(result);
    connection.finish(result);
  }
}

interface Candidate {
  readonly run: LiveRun;
  readonly request: JobRequest;
  readonly log: DecisionLog;
}

interface Admitted extends Candidate {
  readonly facts: RunFacts & { readonly id: string };
  readonly policy: CurrentPolicy;
  readonly grant: Grant;
  /** Absent: nothing was demanded. */
  readonly verified?: VerifiedJob;
  /** What the client was told of it: the log of the run, which begins later, has it, too. */
  readonly told: readonly RunEvent[];
  readonly standing: ImageStanding;
}

/**
 * Throws what {@link consider} and {@link grantOf} throw, and whatever keeps the decision from being recorded. The policy stays
 * usable until `cleanup` is disposed.
 */
async function admit(
  connection: JobConnection,
  candidate: Candidate,
  applicant: Applicant,
  options: JobsOptions,
  cleanup: DisposableStack,
): Promise<Admitted> {
  const { run, request, log } = candidate;
  const image = { name: await imageName(candidate, options), digest: request.image };
  const considered = await consider(request, image, applicant, options, run.id);
  const { policy, input, decided } = considered;
  cleanup.use(policy.hold());
  record(log, input, decided);
  const grant = await grantOf(considered, options);
  const facts = { ...input.run, id: run.id };
  const verdict = await judgeImage({ run, request, log }, facts, policy, options);
  const standing = standingOf(verdict);
  const presets = considered.presets.map(({ shown }) => shown);
  const told: RunEvent[] = [
    { type: 'admitted', policy: policy.engine.revision, mode: grant.mode, presets, image: standing },
    ...[...grant.notices, ...verdict.decided.decision.notices].map(
      (message): RunEvent => ({ type: 'notice', level: 'info', message }),
    ),
  ];
  for (const event of told) connection.event(event);
  const verified = await verify(connection, candidate, facts, policy, options);
  if (verified) {
    const event: RunEvent = { type: 'verified', facts: verified.facts };
    connection.event(event);
    told.push(event);
  }
  return { ...candidate, facts, policy, grant, told, standing, ...(verified ? { verified } : {}) };
}

/** Throws IMAGE_NOT_FOUND; IMAGE_CORRUPT, once somebody was alerted. */
async function imageName({ run, request, log }: Candidate, options: JobsOptions): Promise<string> {
  try {
    return await options.machines.imageName(request.image);
  } catch (error) {
    const facts = { id: run.id, job: request.name, trust: request.origin?.trust ?? 'local' };
    alertIfCorrupt(error, facts, log, options);
    throw error;
  }
}

function alertIfCorrupt(
  error: unknown,
  facts: RunFacts & { readonly id: string },
  log: DecisionLog,
  { alerts }: JobsOptions,
): void {
  if (!(error instanceof CtError) || error.code !== 'IMAGE_CORRUPT') return;
  alerts.file(corruptAlert(error, facts, log.path, new Date()));
}

/** Throws why the image may not boot; then an alert was filed. */
async function judgeImage(
  { run, request, log }: Candidate,
  facts: RunFacts & { readonly id: string },
  policy: CurrentPolicy,
  options: JobsOptions,
): Promise<ImageVerdict> {
  const { imageGate, alerts } = options;
  let verdict: ImageVerdict;
  try {
    verdict = await imageGate.judge(request.image, facts, policy);
  } catch (error) {
    alertIfCorrupt(error, facts, log, options);
    throw error;
  }
  const id = record(log, verdict.input, verdict.decided);
  run.image(standingOf(verdict));
  const alert = imageAlert(verdict, facts, { file: log.path, id }, new Date());
  if (alert) alerts.file(alert);
  const refusal = imageRefusal(verdict);
  if (refusal) throw refusal;
  return verdict;
}

/** Undefined if nothing is demanded. Throws what {@link verifyJob} throws, once somebody was alerted. */
async function verify(
  connection: JobConnection,
  { run, request, log }: Candidate,
  facts: RunFacts & { readonly id: string },
  policy: CurrentPolicy,
  { presets, alerts }: JobsOptions,
): Promise<VerifiedJob | undefined> {
  try {
    return await verifyJob({
      request,
      run: facts,
      policy,
      presets,
      askClient: (demands) => connection.evidence(demands, run.signal),
      record: (input, decided) => void record(log, input, decided),
    });
  } catch (error) {
    const alert = verificationAlert(errorReport(error), facts, log.path, new Date());
    if (alert) alerts.file(alert);
    throw error;
  }
}

/** The id of the entry. */
function record(
  log: DecisionLog,
  input: AdmissionInput | EgressInput | ImageInput | VerifyInput | DetectInput,
  decided: Decided<AdmissionDecision | EgressDecision | ImageDecision | VerifyDecision | FindingDecision>,
): string {
  const decisionId = randomUUID();
  log.add(decisionLogEntry({ decisionId, time: new Date(), labels: { version: VERSION } }, input, decided));
  return decisionId;
}

function openGate(
  admitted: Admitted,
  peer: EgressPeer,
  alerts: EgressAlerts,
  { dialer }: JobsOptions,
): EgressGate {
  const { facts, request, grant, policy, log } = admitted;
  return new EgressGate(
    {
      run: facts,
      steps: request.steps,
      network: grant,
      policy: policy.engine,
      dial: dialer.session(policy.resolve),
      record: {
        add: (input, decided) => record(log, input, decided),
        repeat: (id) => log.repeat(id),
      },
      onDenial: (denied) => {
        const alert = egressAlert(denied, facts, log.path, new Date());
        if (alert) alerts.file(denied.asker.question, alert);
      },
      onOrigin: (question, by) => alerts.origin(question, by),
    },
    peer,
  );
}

async function runAdmitted(
  connection: JobConnection,
  admitted: Admitted,
  options: JobsOptions,
): Promise<void> {
  const { run, request, grant } = admitted;
  const { machines, capacity } = options;
  const signal = AbortSignal.any([connection.signal, run.signal]);
  const shape = shapeOf(request);
  const amount = { cpus: shape.cpus, memoryMib: shape.memoryMib + VM_OVERHEAD_MIB };
  // Evidence takes as long as the client likes, and a turn as long as other jobs do.
  let hasWaited = admitted.verified !== undefined;
  using _taken = await capacity.take(amount, signal, () => {
    hasWaited = true;
    connection.event({ type: 'queued', run: run.id, reason: 'other jobs use the cpu or memory it needs' });
  });
  if (hasWaited) await judgeImage(admitted, admitted.facts, await options.policy.current(), options);
  signal.throwIfAborted();
  run.enter('claiming');
  const claiming = machines.claim(shape, (what) => connection.event({ type: 'preparing', what }));
  const claim = await unlessAborted(claiming, signal);
  if (!claim) {
    // Whoever waits hears of it now; the VM is on its way, and its capacity is taken until it is gone again.
    const result = resultOf(toCtError(signal.reason));
    run.end(result);
    connection.finish(result);
    await claiming.then(({ machine }) => machine.destroy()).catch(() => {});
    return;
  }
  const vm = {
    source: claim.source,
    accelerator: claim.driver.accelerator,
    vmm: `${claim.driver.name} ${claim.driver.version}`,
    claimMs: claim.claimMs,
  };
  run.claimed({ ...vm, pid: claim.machine.vmPid }, claim.machine.imageName);
  const claimed: RunEvent = { type: 'claimed', ...vm };
  let audit: RunAudit | undefined;
  try {
    audit = await beginAudit(admitted, vm, options);
  } catch (error) {
    await claim.machine.destroy();
    throw error;
  }
  using egressAlerts = new EgressAlerts(options.alerts, audit !== undefined);
  const { socket, pending } = connection.release();
  const { code } = grant;
  const detections =
    audit &&
    new RunDetections({
      engine: admitted.policy.engine,
      run: admitted.facts,
      ...(code && {
        code: { mode: code.mode, trust: code.trust },
        verdicts: new CodeVerdicts({
          run: run.id,
          record: (input, finding, meta) =>
            record(admitted.log, input, { decision: { findings: [finding] }, meta }),
        }),
      }),
      baseline: options.runs.baselineOf(request.name),
      evidence: audit.directory,
      alerts: options.alerts,
    });
  const { outcome, error } = await claim.machine.runJob({
    run,
    audit,
    detections,
    request,
    told: admitted.told,
    claimed,
    socket,
    pending,
    settings: grant.settings,
    code: code && {
      settings: { ...code, digests: admitted.verified?.digests ?? [] },
      hasNetwork: grant.hasNetwork,
    },
    expected: admitted.verified?.expected,
    openGate: (peer) => openGate(admitted, peer, egressAlerts, options),
  });
  // The tree was not what was signed: the link process has seen it.
  const alert = verificationAlert(error, admitted.facts, admitted.log.path, new Date());
  if (alert) options.alerts.file(alert);
  const destinations = detections?.destinations;
  if (outcome === 'success' && audit?.isWhole && destinations) run.destinations(destinations);
}

/** Undefined if the run is not to be on record. */
async function beginAudit(
  { run, request, facts, policy, grant, standing }: Admitted,
  { vmm, accelerator }: { readonly vmm: string; readonly accelerator: string },
  { runs, alerts }: JobsOptions,
): Promise<RunAudit | undefined> {
  const { revision } = policy.engine;
  if (grant.audit === 'off') {
    run.audit({ mode: 'off', state: 'off', policy: revision });
    return undefined;
  }
  return RunAudit.begin({
    records: runs.audit,
    mode: grant.audit,
    run: facts,
    cpus: request.cpus,
    facts: {
      image: request.image,
      imageMade: standing.made,
      imageSigners: standing.signers,
      policy: revision,
      vmm,
      accelerator,
    },
    alerts,
    note: (info) => run.audit(info),
  });
}

/** What was claimed, or undefined as soon as the signal is aborted. Rejects if the claim fails before that. */
async function unlessAborted(claiming: Promise<Claim>, signal: AbortSignal): Promise<Claim | undefined> {
  if (signal.aborted) return undefined;
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const onAbort = (): void => resolve(undefined);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    const claim = await Promise.race([claiming, promise]);
    return signal.aborted ? undefined : claim;
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

function shapeOf(request: JobRequest): MachineShape {
  const memoryMib =
    MEMORY_CLASSES_MIB.find((size) => size >= request.memoryMib) ??
    Math.ceil(request.memoryMib / MEMORY_STEP_MIB) * MEMORY_STEP_MIB;
  return { image: request.image, cpus: request.cpus, memoryMib, volumeMib: request.diskMib };
}

interface EvidenceIntake {
  readonly pieces: Buffer[];
  readonly received: PromiseWithResolvers<Evidence>;
  bytes: number;
}

/** The daemon's hold on a client connection, until the link process of the claimed VM takes it over. */
class JobConnection {
  readonly request: Promise<JobRequest>;
  readonly #socket: Socket;
  readonly #decoder: RecordDecoder;
  readonly #controller = new AbortController();
  readonly #received = Promise.withResolvers<JobRequest>();
  readonly #json: Buffer[] = [];
  /** What the client was asked for. */
  #evidence: EvidenceIntake | undefined;
  #jsonBytes = 0;
  #released = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    this.request = this.#received.promise;
    this.request.catch(() => {});
    this.#decoder = new RecordDecoder((type, payload) => this.#record(type, payload));
    socket.on('data', this.#onData);
    socket.on('close', this.#onClose);
    socket.on('error', this.#onClose);
    socket.on('end', this.#onClose);
    socket.resume();
  }

  /** Aborted when the client cancels or goes away. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Asks the client for evidence, once, and waits for it, until `ended`. Throws HOST_PROTOCOL, CANCELLED, why the run ended. */
  async evidence(demands: EvidenceDemands, ended: AbortSignal): Promise<Evidence> {
    const received = Promise.withResolvers<Evidence>();
    this.#evidence = { pieces: [], received, bytes: 0 };
    const signal = AbortSignal.any([this.signal, ended]);
    const onAbort = (): void => received.reject(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    this.event({ type: 'evidence', demands });
    return await withDeadline(
      received.promise,
      EVIDENCE_TIMEOUT_MS,
      () => new CtError('HOST_PROTOCOL', 'the client did not send its evidence in time'),
    );
  }

  event(event: RunEvent): void {
    if (this.#released || this.#socket.destroyed) return;
    for (const record of encodeChunked(ServerRecord.event, Buffer.from(JSON.stringify(event)))) {
      this.#socket.write(record);
    }
  }

  /** Gives the connection away; whatever the client sent and nobody used goes with it. */
  release(): { socket: Socket; pending: Buffer } {
    const socket = this.#socket;
    socket
      .off('data', this.#onData)
      .off('close', this.#onClose)
      .off('error', this.#onClose)
      .off('end', this.#onClose);
    socket.on('error', () => {});
    socket.pause();
    this.#released = true;
    const unread = (socket.read() as Buffer | null) ?? Buffer.alloc(0);
    return { socket, pending: Buffer.concat([this.#decoder.takePending(), unread]) };
  }

  /** Reports an end that no link process can report. */
  finish(result: JobResult): void {
    if (this.#released) return;
    this.event({ type: 'done', result });
    this.#socket.end();
  }

  readonly #onData = (chunk: Buffer): void => {
    try {
      this.#decoder.push(chunk);
    } catch (error) {
      this.#stop(toCtError(error));
    }
  };

  readonly #onClose = (): void => this.#stop(new CtError('CANCELLED', 'the client went away'));

  #record(type: number, payload: Buffer): void {
    if (type === ClientRecord.request) {
      this.#jsonBytes += payload.length;
      if (this.#jsonBytes > MAX_JSON_BYTES)
        throw new CtError('HOST_PROTOCOL', 'the job request is too large');
      this.#json.push(Buffer.from(payload));
    } else if (type === ClientRecord.requestEnd) {
      this.#received.resolve(parseJobRequest(parseJson(Buffer.concat(this.#json))));
    } else if (type === ClientRecord.evidence && this.#evidence) {
      this.#takeEvidence(this.#evidence, payload);
    } else if (type === ClientRecord.cancel) {
      this.#stop(new CtError('CANCELLED', 'the run was cancelled'));
    } else {
      throw new CtError('HOST_PROTOCOL', `record type ${type} came before a VM was claimed`);
    }
  }

  #takeEvidence(evidence: EvidenceIntake, payload: Buffer): void {
    evidence.bytes += payload.length;
    if (evidence.bytes > MAX_EVIDENCE_BYTES) throw new CtError('HOST_PROTOCOL', 'the evidence is too large');
    if (payload.length > 0) evidence.pieces.push(Buffer.from(payload));
    else {
      this.#evidence = undefined;
      evidence.received.resolve(parseEvidence(Buffer.concat(evidence.pieces)));
    }
  }

  #stop(reason: CtError): void {
    this.#received.reject(reason);
    this.#controller.abort(reason);
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new CtError('HOST_PROTOCOL', 'the job request is not JSON', { cause: error });
  }
}
