/** What `ct policy` shows. Pure. */

import type { PolicyCheck } from '../../host/client.ts';
import type { Denial } from '../../policy/decision.ts';
import type { Learned, LearnedEntry } from '../../policy/learn.ts';
import type { Refusal } from '../decisions.ts';
import { formatHint, oneLine, type Style } from './format.ts';
import { localTime } from './run-info.ts';
import { formatTable } from './table.ts';

/** Where a rule or an entry of the policy stands. */
export interface Place {
  readonly file: string;
  readonly line: number;
}

export interface LocatedRefusal extends Refusal {
  /** The rule, in Rego. */
  readonly source?: Place;
  /** The entry of the policy data that it follows. */
  readonly data?: Place;
}

/** What policy says to one job. */
export interface CheckedJob extends PolicyCheck {
  readonly name: string;
  readonly image: string;
  /** Those of the decision, with the place of each. */
  readonly denials: readonly (Denial & { readonly source?: Place })[];
}

const ORIGINS = { source: 'the working tree', built: 'what steps without network write' } as const;

export function checkedJobText(
  { name, decision, denials, presets, verify }: CheckedJob,
  style: Style,
): string {
  const { allow, network } = decision;
  const title = style.bold(oneLine(name));
  if (!allow) {
    const reasons = denials.map(
      ({ message, rule, hint, source }) =>
        `  ${oneLine(message)}\n  rule ${oneLine(rule)}${at(source)}\n${hint === undefined ? '' : formatHint(hint)}`,
    );
    return `${title}: ${style.red('denied')}\n${reasons.join('')}`;
  }
  const resolved = presets.map(
    ({ name: preset, destinations, source }) =>
      `  ${oneLine(`${preset} is ${destinations.join(', ')} (${source})`)}\n`,
  );
  const rows = network.allow.map(({ host, port, protocol, addresses, rule }) => [
    host,
    port === 0 ? 'any' : String(port),
    protocol === 'tcp' ? 'anything' : protocol,
    addresses === 'any' ? 'any address' : 'public addresses',
    `by ${rule}`,
  ]);
  const grants =
    rows.length === 0
      ? '  it can connect to nothing\n'
      : `  it can connect to:\n${formatTable(rows).replaceAll(/^/gm, '    ').trimEnd()}\n`;
  const { code } = decision;
  const judged =
    code === undefined || code.mode === 'off'
      ? ''
      : `  code: ${code.mode}; trusted are the image, what is signed${code.trust.map((origin) => `, ${ORIGINS[origin]}`).join('')}\n`;
  return `${title}: ${style.green('allowed')}; network: ${network.mode}\n${resolved.join('')}${grants}${judged}${demanded(verify)}`;
}

function demanded(verify: CheckedJob['verify']): string {
  if (verify === undefined) return '';
  const { commit, scripts, dependencies } = verify;
  const what = [
    ...(commit ? ['its commit'] : []),
    ...scripts,
    ...(dependencies === 'none' ? [] : [`dependencies (${dependencies})`]),
  ];
  return `  has to be vouched for: ${oneLine(what.join(', '))}\n`;
}

/** The document of `ct policy check --json` has these. */
export function checkedJobJson({ name, image, decision, denials, presets, verify }: CheckedJob): unknown {
  const { allow, network, code = null } = decision;
  const given = { network: allow ? network : null, code, presets, verify: verify ?? null };
  return { name, image, allowed: allow, denials, ...given };
}

/** One paragraph for each refusal; those that say the same of the same step (A and AAAA of a name) are one. */
export function explanation(refusals: readonly LocatedRefusal[], style: Style): string {
  return mergeAlike(refusals)
    .map(({ time, step, action, count, denial, source, data }) => {
      const loud = action === 'recorded' ? style.yellow : style.red;
      const when = localTime(Date.parse(time));
      const where = step === undefined ? '' : ` in step “${oneLine(step)}”`;
      const often = count === 1 ? '' : `, ${count} times`;
      return [
        `${when} ${loud(action)}${where}${often}\n`,
        `  ${oneLine(denial.message)}\n`,
        `  rule ${oneLine(denial.rule)}${at(source)}\n`,
        data === undefined ? '' : `  policy data${at(data)}\n`,
        denial.hint === undefined ? '' : formatHint(denial.hint),
      ].join('');
    })
    .join('\n');
}

/** In the order of the first of each kind; counts are added up. */
function mergeAlike(refusals: readonly LocatedRefusal[]): LocatedRefusal[] {
  const merged = new Map<string, LocatedRefusal>();
  for (const refusal of refusals) {
    const { step, action, denial } = refusal;
    const key = JSON.stringify([step ?? null, action, denial.rule, denial.message]);
    const first = merged.get(key);
    merged.set(key, first ? { ...first, count: first.count + refusal.count } : refusal);
  }
  return [...merged.values()];
}

/** The document of `ct policy explain --json` has these. */
export function refusalJson(refusal: LocatedRefusal): unknown {
  const { id, time, step, action, count, denial, request, source, data } = refusal;
  return {
    id,
    time,
    step: step ?? null,
    action,
    count,
    rule: denial.rule,
    message: denial.message,
    hint: denial.hint ?? null,
    request: request ?? null,
    source: source ?? null,
    data: data ?? null,
  };
}

function at(place: Place | undefined): string {
  return place === undefined ? '' : ` (${oneLine(place.file)}:${place.line})`;
}

/** YAML to paste: `network:` for the job file, then what the policy has to say for it. */
export function learnedYaml(
  learned: Learned,
  about: { readonly runs: readonly string[]; readonly repository: string | undefined },
): string {
  const { allow, left } = learned;
  const lines = [
    `# What ${about.runs.map(inComment).join(', ')} needed of the network.`,
    ...left.map((reason) => `# Not asked for: ${inComment(reason)}`),
    '',
    '# For the job in ct.yml:',
    'network:',
    ...entryLines(allow, 2),
    '',
    '# For data.yml of the policy, where it does not say so already:',
    ...policyLines(learned, about.repository),
  ];
  return lines.map((line) => `${line}\n`).join('');
}

function policyLines({ allow, private: addresses }: Learned, repository: string | undefined): string[] {
  const opened =
    addresses.size === 0
      ? []
      : [
          '  private:',
          ...[...addresses].map(
            ([host, known]) => `    ${quoted(host)}: [${known.map((one) => JSON.stringify(one)).join(', ')}]`,
          ),
        ];
  const bare = allow.map(({ entry }): LearnedEntry => ({ entry, count: 0, steps: [] }));
  if (repository === undefined) return ['egress:', ...entryLines(bare, 2), ...opened];
  return [
    'repositories:',
    `  ${quoted(repository)}:`,
    '    egress:',
    ...entryLines(bare, 6),
    ...(opened.length === 0 ? [] : ['egress:', ...opened]),
  ];
}

function entryLines(entries: readonly LearnedEntry[], indent: number): string[] {
  const margin = ' '.repeat(indent);
  if (entries.length === 0) return [`${margin}allow: []`];
  const shown = entries.map(({ entry }) => quoted(entry));
  const width = Math.max(...shown.map(({ length }) => length));
  return [
    `${margin}allow:`,
    ...entries.map((entry, index) => {
      const comment = commentOf(entry);
      const text = shown[index] ?? '';
      return comment === ''
        ? `${margin}  - ${text}`
        : `${margin}  - ${text.padEnd(width)}  # ${comment}`.trimEnd();
    }),
  ];
}

function commentOf({ count, steps, note }: LearnedEntry): string {
  const often = count === 0 ? [] : [`${count} ${count === 1 ? 'connection' : 'connections'}`];
  const where = steps.length === 0 ? [] : [`${steps.length === 1 ? 'step' : 'steps'} ${steps.join(', ')}`];
  return inComment([...often, ...where, ...(note === undefined ? [] : [note])].join('; '));
}

/** What ends a comment in YAML 1.1 does not in 1.2; both are to read the same. */
function inComment(text: string): string {
  return oneLine(text).replaceAll(/[\u2028\u2029]/g, ' ');
}

/** Plain where YAML reads it as a string in any place, else in quotes. */
function quoted(text: string): string {
  return /^[a-z][a-z0-9_./:-]*$/i.test(text) &&
    !/^(true|false|null|yes|no|on|off)$/i.test(text) &&
    !text.endsWith(':')
    ? text
    : JSON.stringify(text);
}
