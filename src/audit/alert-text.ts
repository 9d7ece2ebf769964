/**
 * Alerts made safe to store and to show, and read back. Names, arguments and titles come from guests and job files: they
 * are cut to size, on one line, and without anything that moves a cursor or turns text around. Pure.
 */
import { printable } from '../core/bounded-tail.ts';
import type { Alert } from './alert.ts';

/** A line of the alert file, and the body of a request; every field below is cut, so none comes near it. */
export const MAX_ALERT_BYTES = 32_768;

const MAX_ID_CHARACTERS = 100;
const MAX_WORD_CHARACTERS = 300;
/** A sentence with a name of 253 characters in it fits. */
const MAX_TITLE_CHARACTERS = 600;
const MAX_PATH_CHARACTERS = 1000;
const MAX_ARGUMENTS_CHARACTERS = 1000;

const SEVERITIES = ['low', 'medium', 'high', 'critical'] as const satisfies readonly Alert['severity'][];
export const ALERT_ACTIONS = [
  'recorded',
  'denied',
  'terminated',
] as const satisfies readonly Alert['action'][];

/** `text` on one line, at most `maxCharacters` long, of characters that show as themselves (UTF-8 can hold them). */
export function safeText(text: string, maxCharacters: number): string {
  const line = printable(text.slice(0, 2 * maxCharacters))
    .toWellFormed()
    // Line and paragraph separators; marks that change the direction of text or are invisible.
    .replaceAll(/[\n\t\u2028\u2029]+/g, ' ')
    .replaceAll(/\p{Cf}/gu, '')
    .trim();
  const characters = [...line];
  return characters.length <= maxCharacters ? line : `${characters.slice(0, maxCharacters - 1).join('')}…`;
}

/** The alert with every string made safe. */
export function safeAlert(alert: Alert): Alert {
  const { run, process, file, destination } = alert;
  const word = (text: string): string => safeText(text, MAX_WORD_CHARACTERS);
  return {
    version: 1,
    id: safeText(alert.id, MAX_ID_CHARACTERS),
    time: safeText(alert.time, MAX_ID_CHARACTERS),
    severity: alert.severity,
    title: safeText(alert.title, MAX_TITLE_CHARACTERS),
    rule: word(alert.rule),
    action: alert.action,
    run: {
      id: word(run.id),
      job: word(run.job),
      ...(run.repository === undefined ? {} : { repository: word(run.repository) }),
      ...(run.ref === undefined ? {} : { ref: word(run.ref) }),
      ...(run.actor === undefined ? {} : { actor: word(run.actor) }),
      ...(run.step === undefined ? {} : { step: word(run.step) }),
    },
    ...(process === undefined
      ? {}
      : {
          process: {
            pid: process.pid,
            binary: safeText(process.binary, MAX_PATH_CHARACTERS),
            ...(process.arguments === undefined
              ? {}
              : { arguments: safeText(process.arguments, MAX_ARGUMENTS_CHARACTERS) }),
          },
        }),
    ...(file === undefined
      ? {}
      : {
          file: {
            path: safeText(file.path, MAX_PATH_CHARACTERS),
            ...(file.digest === undefined ? {} : { digest: word(file.digest) }),
          },
        }),
    ...(destination === undefined
      ? {}
      : {
          destination: {
            host: word(destination.host),
            ...(destination.port === undefined ? {} : { port: destination.port }),
            ...(destination.protocol === undefined ? {} : { protocol: word(destination.protocol) }),
          },
        }),
    evidence: { file: safeText(alert.evidence.file, MAX_PATH_CHARACTERS), id: word(alert.evidence.id) },
    count: alert.count,
  };
}

/** The alert that one line of JSON holds; undefined if it holds none. At most {@link MAX_ALERT_BYTES} are looked at. */
export function parseAlert(line: string): Alert | undefined {
  if (line.length > MAX_ALERT_BYTES) return undefined;
  try {
    return alertOf(JSON.parse(line));
  } catch {
    return undefined;
  }
}

/** What `value` says, if it is an alert of version 1, made safe; members that no alert has are dropped. */
export function alertOf(value: unknown): Alert | undefined {
  const alert = value as Alert;
  const isAlert =
    isObject(value) &&
    value['version'] === 1 &&
    ['id', 'time', 'title', 'rule'].every((key) => typeof value[key] === 'string') &&
    SEVERITIES.includes(alert.severity) &&
    ALERT_ACTIONS.includes(alert.action) &&
    Number.isSafeInteger(alert.count) &&
    hasStrings(value['run'], ['id', 'job'], ['repository', 'ref', 'actor', 'step']) &&
    hasStrings(value['evidence'], ['file', 'id'], []) &&
    (value['process'] === undefined ||
      (hasStrings(value['process'], ['binary'], ['arguments']) &&
        Number.isSafeInteger(alert.process?.pid))) &&
    (value['file'] === undefined || hasStrings(value['file'], ['path'], ['digest'])) &&
    (value['destination'] === undefined ||
      (hasStrings(value['destination'], ['host'], ['protocol']) &&
        (alert.destination?.port === undefined || Number.isSafeInteger(alert.destination.port))));
  return isAlert ? safeAlert(alert) : undefined;
}

function hasStrings(value: unknown, needed: readonly string[], possible: readonly string[]): boolean {
  return (
    isObject(value) &&
    needed.every((key) => typeof value[key] === 'string') &&
    possible.every((key) => value[key] === undefined || typeof value[key] === 'string')
  );
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null;
}
