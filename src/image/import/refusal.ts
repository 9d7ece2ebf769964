import { CtError } from '../../core/errors.ts';

/** Why something foreign does not become an image. */
export function refused(
  reason: string,
  options: { readonly hint?: string; readonly cause?: unknown } = {},
): CtError {
  return new CtError('IMAGE_IMPORT_REFUSED', reason, options);
}

/** A name of a stranger, as messages show it: quoted, without control characters, cut. `name` has one character a byte. */
export function shown(name: string): string {
  return JSON.stringify(Buffer.from(name, 'latin1').toString('utf8').slice(0, 200));
}
