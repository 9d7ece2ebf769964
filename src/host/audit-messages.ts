/** What a link process says about the audit record of its run. The daemon takes only what these parsers accept. */
import { type AuditSummary, MAX_MESSAGE_LENGTH, parseAuditSummary } from '../audit/summary.ts';
import { AUDIT_VIOLATION_REASONS, type AuditViolationReason } from '../audit/violation.ts';

/** Why there is no whole record: `absent`: the guest makes none; `store`: this host cannot keep it. */
export type AuditLossReason = AuditViolationReason | 'absent' | 'store';

export interface AuditLoss {
  readonly reason: AuditLossReason;
  readonly message: string;
}

/** How a record ended. Of `lost`, nothing is there that could be sealed. */
export type AuditReport =
  | { readonly kind: 'recorded'; readonly summary: AuditSummary }
  | { readonly kind: 'lost'; readonly loss: AuditLoss };

/** Undefined if it is none. */
export function parseAuditLoss(value: unknown): AuditLoss | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { reason, message } = value as Readonly<Record<string, unknown>>;
  const isReason =
    reason === 'absent' || reason === 'store' || AUDIT_VIOLATION_REASONS.includes(reason as string);
  if (!isReason || typeof message !== 'string' || message.length > MAX_MESSAGE_LENGTH) return undefined;
  return { reason: reason as AuditLossReason, message };
}

/** Undefined if it is none. */
export function parseAuditReport(value: unknown): AuditReport | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { kind, summary, loss } = value as Readonly<Record<string, unknown>>;
  if (kind === 'lost') {
    const parsed = parseAuditLoss(loss);
    return parsed && { kind, loss: parsed };
  }
  if (kind !== 'recorded') return undefined;
  try {
    return { kind, summary: parseAuditSummary(summary) };
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}
