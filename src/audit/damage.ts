import { CtError } from '../core/errors.ts';

/** What is wrong with a stored record. The words stay the same: `ct audit verify --json` prints them. */
export const DAMAGE_KINDS = [
  'segment-missing',
  /** A file that lies beyond the last segment. */
  'segment-extra',
  /** Another segment of the same run lies where this one belongs. */
  'segment-moved',
  /** A segment of another run. */
  'segment-foreign',
  'truncated',
  'extended',
  'changed',
  /** The files are what was sealed, but what they hold and what the seal says about it are not the same. */
  'contradiction',
  'seal-invalid',
  'seal-foreign',
] as const;

export type DamageKind = (typeof DAMAGE_KINDS)[number];

export interface DamagePlace {
  /** Name in the directory of the record. */
  readonly file: string;
  /** Of the first bad byte, as near as it can be told: it lies in [from, to). One byte: exactly there. */
  readonly from?: number;
  readonly to?: number;
}

/** A stored record is not what was written. */
export class AuditDamage extends CtError {
  readonly damage: DamageKind;
  readonly place: DamagePlace;

  constructor(damage: DamageKind, place: DamagePlace, message: string, cause?: unknown) {
    super('AUDIT_TAMPERED', `${placeText(place)}: ${message}`, { cause });
    this.damage = damage;
    this.place = place;
  }
}

function placeText({ file, from, to }: DamagePlace): string {
  if (from === undefined) return file;
  return to === undefined || to - from <= 1 ? `${file}, byte ${from}` : `${file}, bytes ${from} to ${to - 1}`;
}
