/** What policy, the network and the control of code say of a run, in words. Pure. */
import type { JobEnd } from '../../job/schedule.ts';
import type { RunEvent } from '../../protocol/run.ts';
import { formatHint, oneLine, type Style } from './format.ts';

type Admitted = Extract<RunEvent, { readonly type: 'admitted' }>;
export type CodeNotice = Extract<RunEvent, { readonly type: 'code' }>;
export type NetworkNotice = Extract<RunEvent, { readonly type: 'network' }>;
type UnreachedNotice = Extract<RunEvent, { readonly type: 'unreached' }>;

/** Destinations of a preset in one line; `ct policy check` shows all. */
const DESTINATIONS_SHOWN = 4;
/** As much of a digest as tells two policies apart. */
const DIGEST_CHARACTERS = 12;

/** Which policy let the job in, and what its presets stand for on this host. */
export function admittedLines({ policy, mode, presets, image }: Admitted): string[] {
  return [
    imageLine(image),
    `admitted by policy ${shortDigest(policy)}; network: ${mode}`,
    ...presets.map(({ name, destinations, source }) => {
      const shown = destinations.slice(0, DESTINATIONS_SHOWN).join(', ');
      const more = destinations.length - DESTINATIONS_SHOWN;
      return oneLine(`${name} is ${shown}${more > 0 ? ` and ${more} more` : ''} (${source})`);
    }),
  ];
}

/** Which image it is, to compare it with that of another machine, and who stands for it. */
export function imageLine({ name, digest, made, signers }: Admitted['image']): string {
  const where = made === 'elsewhere' ? 'from elsewhere' : `${made} here`;
  const who = signers.length === 0 ? 'unsigned, which policy allows' : `signed by ${signers.join(', ')}`;
  return oneLine(`image ${name} ${shortDigest(digest)}: ${where}, ${who}`);
}

export function shortDigest(digest: string): string {
  return oneLine(digest)
    .replace(/^sha256:/, '')
    .slice(0, DIGEST_CHARACTERS);
}

/** At the end of a job: what would be refused in another mode than `audit`. */
export function recordedCodeLines(notices: readonly CodeNotice[], style: Style): string[] {
  const recorded = notices.filter(({ action }) => action === 'recorded');
  if (recorded.length === 0) return [];
  return [
    style.yellow(
      `${recorded.length === 1 ? 'this' : `these ${recorded.length}`} would be refused if \`exec\` were not only \`audit\`:`,
    ),
    ...recorded.map(({ message, rule }) => style.dim(`  ${oneLine(message)} (rule ${oneLine(rule)})`)),
  ];
}

/** A refusal, or what mode `audit` only records; nothing for one that ended the run, which its result says. */
export function noticeLines(notice: NetworkNotice | CodeNotice, style: Style): string {
  const { action, message, rule, hint } = notice;
  if (action === 'terminated') return '';
  const what = `${oneLine(message)} (rule ${oneLine(rule)})`;
  if (action === 'recorded') return style.dim(`• not blocked, only recorded: ${what}`);
  return `${style.red('denied')}: ${what}\n${hint === undefined ? '' : formatHint(hint)}`;
}

/** Of a destination that policy allows. */
export function unreachedLine({ host, port, message }: UnreachedNotice, style: Style): string {
  return `${style.yellow('not reached')}: ${oneLine(host)} port ${port}: ${oneLine(message)}`;
}

/** Where the whole story is, after a run that policy refused or ended. */
export function explainHint(end: JobEnd, run: string | undefined): string | undefined {
  if (end.state !== 'ran' || run === undefined) return undefined;
  const { outcome, error } = end.result;
  const byPolicy =
    outcome === 'violation' || error?.code === 'POLICY_DENIED' || error?.code === 'POLICY_VIOLATION';
  return byPolicy ? `every decision of the run: ct policy explain ${oneLine(run)}` : undefined;
}
