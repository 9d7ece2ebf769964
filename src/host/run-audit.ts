/** The audit record of one run, as the daemon sees it: what it is told, what policy wants, and what it seals. */
import { type AlertSink, alertRun, newAlert } from '../audit/alert.ts';
import type { SealFacts } from '../audit/seal.ts';
import type { AuditSummary } from '../audit/summary.ts';
import { CtError, messageOf } from '../core/errors.ts';
import { resultOf } from '../job/outcome.ts';
import type { RunFacts } from '../policy/input.ts';
import type { AuditMode } from '../protocol/audit.ts';
import type { JobResult } from '../protocol/run.ts';
import type { RunAuditInfo } from './api.ts';
import type { AuditLoss, AuditReport } from './audit-messages.ts';
import type { AuditRecords } from './audit-records.ts';

export interface RunAuditOptions {
  readonly records: AuditRecords;
  readonly mode: Exclude<AuditMode, 'off'>;
  readonly run: RunFacts & { readonly id: string };
  /** Of the VM. */
  readonly cpus: number;
  readonly facts: Pick<SealFacts, 'image' | 'imageMade' | 'imageSigners' | 'policy' | 'vmm' | 'accelerator'>;
  readonly alerts: AlertSink;
  /** Puts what is known on record. */
  readonly note: (info: RunAuditInfo) => void;
}

export class RunAudit {
  readonly cpus: number;
  readonly isRequired: boolean;
  readonly #options: RunAuditOptions;
  #hasAlerted = false;
  #report: AuditReport | undefined;

  private constructor(options: RunAuditOptions) {
    this.#options = options;
    this.cpus = options.cpus;
    this.isRequired = options.mode === 'required';
  }

  /** Where the record will lie exists. Throws what keeps it from that. */
  static async begin(options: RunAuditOptions): Promise<RunAudit> {
    await options.records.begin(options.run.id);
    const { mode, facts } = options;
    options.note({ mode, state: 'recording', policy: facts.policy });
    return new RunAudit(options);
  }

  /** Whether the run has ended with a whole record. */
  get isWhole(): boolean {
    return this.#report?.kind === 'recorded' && !this.#report.summary.violation;
  }

  /** The link process writes there. */
  get directory(): string {
    return this.#options.records.directory(this.#options.run.id);
  }

  /** The record is not whole: files an alert, and returns what ends the run, if policy requires the record. */
  lost(loss: AuditLoss): CtError | undefined {
    this.#alert(loss);
    if (!this.isRequired) return undefined;
    const isOurs = loss.reason === 'absent' || loss.reason === 'store';
    const message = `policy requires an audit record of the run; ${loss.message}`;
    return new CtError(isOurs ? 'AUDIT_UNAVAILABLE' : 'AUDIT_LOST', message, {
      hint: isOurs
        ? 'an image that was built by an earlier version of ct has no tracer: build it again'
        : `what was recorded until then: ct audit show ${this.#options.run.id}`,
    });
  }

  /**
   * The job has ended: seals what the link process said of its record. Without a report that process has been killed, and what
   * it left is sealed when it is {@link released}. Returns the result of the job, which is another one if policy requires a
   * record that is not there, and what its client has not been told yet. Legal once. Never rejects.
   */
  async end(
    report: AuditReport | undefined,
    result: JobResult,
  ): Promise<{ readonly result: JobResult; readonly loss?: AuditLoss }> {
    this.#report = report;
    if (!report) return { result };
    const loss = report.kind === 'lost' ? report.loss : report.summary.violation;
    const ended = loss ? this.#endedWithout(loss, result) : { result };
    if (report.kind === 'recorded') {
      const unsealed = await this.#seal(report.summary, ended.result);
      return unsealed ? this.#endedWithout(unsealed, ended.result) : ended;
    }
    this.#note({ state: report.loss.reason === 'absent' ? 'absent' : 'unsealed', ...report.loss });
    return ended;
  }

  /** A run that did not end by itself ended for another reason, and its record with it. */
  #endedWithout(
    loss: AuditLoss,
    result: JobResult,
  ): { readonly result: JobResult; readonly loss?: AuditLoss } {
    if (result.outcome !== 'success' && result.outcome !== 'failure') return { result };
    const isNews = !this.#hasAlerted;
    const error = this.lost(loss);
    return { result: error ? resultOf(error) : result, ...(isNews ? { loss } : {}) };
  }

  /** The link process is gone. Never rejects. */
  async released(result: JobResult): Promise<void> {
    const { records, run } = this.#options;
    try {
      if (!this.#report) await this.#recover(result);
      await records.released(run.id);
      if (this.#report?.kind === 'lost' && this.#report.loss.reason === 'absent')
        await records.remove(run.id);
    } catch (error) {
      this.#note({ state: 'unsealed', reason: 'store', message: messageOf(error) });
    }
  }

  async #recover(result: JobResult): Promise<void> {
    const { records, run } = this.#options;
    const report = await records.recover(run.id, this.cpus);
    if (report.kind === 'recorded') await this.#seal(report.summary, result);
    else this.#note({ state: 'unsealed', ...report.loss });
  }

  /** Returns why there is no seal, if there is none. */
  async #seal(summary: AuditSummary, { outcome, error }: JobResult): Promise<AuditLoss | undefined> {
    const { records, run, facts } = this.#options;
    try {
      await records.seal(
        {
          run: run.id,
          ...facts,
          outcome,
          ...(error ? { error: error.code } : {}),
          sealedAt: new Date().toISOString(),
        },
        summary,
      );
      this.#note(sealedInfo(summary));
      return undefined;
    } catch (cause) {
      const loss: AuditLoss = {
        reason: 'store',
        message: `the audit record was not sealed: ${messageOf(cause)}`,
      };
      this.#note({ state: 'unsealed', ...loss });
      return loss;
    }
  }

  #note(info: Omit<RunAuditInfo, 'mode' | 'policy'>): void {
    const { mode, facts, note } = this.#options;
    note({ mode, policy: facts.policy, ...info });
  }

  #alert({ reason, message }: AuditLoss): void {
    if (this.#hasAlerted) return;
    this.#hasAlerted = true;
    const { alerts, run } = this.#options;
    const alert = newAlert(new Date(), {
      severity: OWN_FAULTS.has(reason) ? 'medium' : 'high',
      title: message,
      rule: `ct.audit.${reason}`,
      action: this.isRequired ? (reason === 'absent' ? 'denied' : 'terminated') : 'recorded',
      run: alertRun(run),
      evidence: { file: this.directory, id: reason },
    });
    alerts.file(alert);
  }
}

/** What need not be the job's doing. */
const OWN_FAULTS: ReadonlySet<AuditLoss['reason']> = new Set(['absent', 'store', 'full', 'interrupted']);

/** What is known of a record that was sealed. */
export function sealedInfo(summary: AuditSummary): Omit<RunAuditInfo, 'mode' | 'policy'> {
  const { counts, segments, head, violation } = summary;
  return {
    state: violation ? 'incomplete' : 'complete',
    head,
    records: counts.cpus.reduce((sum, { records }) => sum + records, counts.processRecords),
    bytes: segments.reduce((sum, { bytes }) => sum + bytes, 0),
    ...violation,
  };
}
