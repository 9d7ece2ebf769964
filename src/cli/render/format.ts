/** Words for people: durations, sizes, errors. Pure. */
import { printable } from '../../core/bounded-tail.ts';
import { type CtError, type ErrorReport, messageOf } from '../../core/errors.ts';

export interface Style {
  readonly bold: (text: string) => string;
  readonly dim: (text: string) => string;
  readonly red: (text: string) => string;
  readonly green: (text: string) => string;
  readonly yellow: (text: string) => string;
}

const sgr = (code: number) => (text: string) => `\x1b[${code}m${text}\x1b[0m`;
const same = (text: string): string => text;

export const COLOURED: Style = { bold: sgr(1), dim: sgr(2), red: sgr(31), green: sgr(32), yellow: sgr(33) };
export const UNSTYLED: Style = { bold: same, dim: same, red: same, green: same, yellow: same };

/** Colours for a terminal, unless https://no-color.org is followed. */
export function styleFor(isTty: boolean, env: Readonly<NodeJS.ProcessEnv> = process.env): Style {
  return isTty && !env['NO_COLOR'] && env['TERM'] !== 'dumb' ? COLOURED : UNSTYLED;
}

/** `84 ms`, `2.1 s`, `3 min 5 s`. */
export function formatElapsed(milliseconds: number): string {
  if (milliseconds < 999.5) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 59_950) return `${(milliseconds / 1000).toFixed(1)} s`;
  const seconds = Math.round(milliseconds / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  return hours > 0 ? `${hours} h ${minutes} min` : `${minutes} min ${seconds % 60} s`;
}

/** `512 B`, `3.4 KB`, `12 MB` (powers of 1000, as file managers and `ls --si` count). */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 9.95 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** `text` for a place within one line of ours: no control characters, no line breaks. */
const BAR_CELLS = 20;

/** `[########············] 42 %` of a fraction from 0 to 1. */
export function progressBar(fraction: number): string {
  const bounded = Math.min(1, Math.max(0, fraction));
  const full = Math.round(bounded * BAR_CELLS);
  return `[${'#'.repeat(full)}${'·'.repeat(BAR_CELLS - full)}] ${Math.round(bounded * 100)} %`;
}

export function oneLine(text: string): string {
  return printable(text)
    .replaceAll(/[\n\t]+/g, ' ')
    .trim();
}

/** The rendering of docs/errors.md: `error[CODE]: message`, then `  hint: …`. Without control characters. */
export function formatError(error: ErrorReport, style: Style): string {
  const head = `${style.red(`error[${error.code}]`)}: ${printable(error.message)}\n`;
  return error.hint === undefined ? head : `${head}${formatHint(error.hint)}`;
}

export function formatHint(hint: string): string {
  return `  hint: ${printable(hint).replaceAll('\n', '\n        ')}\n`;
}

/** A bug: says where to report it; the stack only if asked for, because it says nothing to a user. */
export function formatInternalError(error: CtError, style: Style, debug: boolean): string {
  const hint = debug
    ? 'this is a bug in ct; please report it with the lines below'
    : 'this is a bug in ct; please report it (CONTRIBUTING.md says where) with what CT_DEBUG=1 adds to this message';
  const head = formatError({ code: error.code, message: error.message, hint }, style);
  return debug ? `${head}${stackOf(error)}\n` : head;
}

/** The stack of an error and of what caused it. */
export function stackOf(error: unknown): string {
  if (!(error instanceof Error)) return messageOf(error);
  const own = error.stack ?? error.message;
  return error.cause === undefined ? own : `${own}\ncaused by: ${stackOf(error.cause)}`;
}
