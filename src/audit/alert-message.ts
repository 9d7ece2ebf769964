/** What webhooks are sent: bodies and signatures. Pure. */
import { createHmac } from 'node:crypto';
import type { Alert } from './alert.ts';
import type { Webhook } from './alert-config.ts';

/** Slack's limit for a header is 150 characters, and 2,000 for a field. */
const MAX_HEADER_CHARACTERS = 150;
const MAX_FIELD_CHARACTERS = 1900;

export function webhookBody(alert: Alert, format: Webhook['format']): string {
  return JSON.stringify(format === 'slack' ? slackMessage(alert) : alert);
}

/**
 * Value of the header `X-Ct-Signature`: `t=SECONDS,v1=HEX`, where HEX is the HMAC-SHA256, under the secret, of SECONDS, a full
 * stop and the body. The time is signed, so that a receiver can refuse a request that somebody kept.
 */
export function signature(secret: Buffer, body: string, nowMs: number): string {
  const seconds = Math.floor(nowMs / 1000);
  const mac = createHmac('sha256', secret).update(`${seconds}.${body}`).digest('hex');
  return `t=${seconds},v1=${mac}`;
}

interface PlainText {
  readonly type: 'plain_text';
  readonly text: string;
  readonly emoji: false;
}

/**
 * What comes from a guest stands in plain text objects, where no markup and no link is made of it; `text`, which
 * notifications show, has markup off.
 */
function slackMessage(alert: Alert): unknown {
  const { run, process, file, destination } = alert;
  const rows: [string, string | undefined][] = [
    ['Action', alert.count === 1 ? alert.action : `${alert.action}, ${alert.count} times`],
    ['Severity', alert.severity],
    ['Rule', alert.rule],
    ['Destination', destination && [destination.host, destination.port].filter(Boolean).join(' port ')],
    ['Job', run.step === undefined ? run.job : `${run.job}, step ${run.step}`],
    ['Repository', [run.repository, run.ref].filter(Boolean).join(' ') || undefined],
    ['Actor', run.actor],
    ['Process', process && `${process.pid} ${process.arguments ?? process.binary}`],
    ['File', file && [file.path, file.digest].filter(Boolean).join(' ')],
    ['Run', run.id],
    ['Time', alert.time],
  ];
  const fields = rows.flatMap(([name, value]) =>
    value === undefined ? [] : [plain(`${name}: ${value}`, MAX_FIELD_CHARACTERS)],
  );
  return {
    text: slackText(alert.title, MAX_FIELD_CHARACTERS),
    mrkdwn: false,
    unfurl_links: false,
    unfurl_media: false,
    blocks: [
      { type: 'header', text: plain(alert.title, MAX_HEADER_CHARACTERS) },
      { type: 'section', fields },
    ],
  };
}

function plain(text: string, maxCharacters: number): PlainText {
  return { type: 'plain_text', text: slackText(text, maxCharacters), emoji: false };
}

/** Slack's three control characters begin links, mentions and `<!channel>`; as entities they are characters. */
function slackText(text: string, maxCharacters: number): string {
  let escaped = '';
  for (const character of text) {
    const next = { '&': '&amp;', '<': '&lt;', '>': '&gt;' }[character] ?? character;
    // Not cut in the middle of an entity.
    if (escaped.length + next.length > maxCharacters - 1) return `${escaped}…`;
    escaped += next;
  }
  return escaped;
}
