import { CtError } from '../core/errors.ts';

/** Why the record of a run is not what it has to be. The words stay the same: alerts, seals and tests name them. */
export type AuditViolationReason =
  /** The bytes of the guest are no frames. */
  | 'malformed'
  /** A frame does not continue the last one of its CPU: records are missing, or come twice. */
  | 'gap'
  /** The guest counted records that it had to drop. */
  | 'lost'
  /** Neither frame nor heartbeat came in time. */
  | 'silent'
  /** The channel ended before the run did, maybe within a frame. */
  | 'closed'
  /** The job has ended, and the guest did not send all that it had recorded. */
  | 'unsent'
  /** Whoever kept the record was killed. */
  | 'interrupted'
  /** The record is as large as it may become. */
  | 'full';

/** All of {@link AuditViolationReason}. */
export const AUDIT_VIOLATION_REASONS: readonly string[] = [
  'malformed',
  'gap',
  'lost',
  'silent',
  'closed',
  'unsent',
  'interrupted',
  'full',
] satisfies AuditViolationReason[];

/** Ends the run whose record it is about. What the guest sent is to blame, so the code is one for bytes of others. */
export class AuditViolation extends CtError {
  readonly reason: AuditViolationReason;

  constructor(reason: AuditViolationReason, message: string) {
    super(reason === 'malformed' ? 'GUEST_PROTOCOL' : 'AUDIT_INCOMPLETE', `audit: ${message}`);
    this.reason = reason;
  }
}
