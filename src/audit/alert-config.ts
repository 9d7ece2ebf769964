/** Where alerts go besides the alert file: `alerts.yml` in the operator's policy directory. docs/alerts.md describes it. */
import { statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { CtError } from '../core/errors.ts';
import { requireUnchangeable } from '../core/paths.ts';
import { readSource } from '../core/source-text.ts';
import { list } from '../job/schema/collections.ts';
import { parseConfig } from '../job/schema/config-file.ts';
import { object, optional, required } from '../job/schema/objects.ts';
import { oneOf, text } from '../job/schema/scalars.ts';
import { ALERT_ACTIONS } from './alert-text.ts';

/** A hand-written file; one of URLs, keys or certificates is smaller still. */
const MAX_CONFIG_BYTES = 256 * 1024;
/** Each has a queue of its own. */
const MAX_WEBHOOKS = 10;
/** HMAC-SHA256 gains nothing from more than 64; fewer than 16 could be guessed. */
const MIN_SECRET_BYTES = 16;
const MAX_SECRET_FILE_BYTES = 4096;
const GROUP_OR_OTHERS = 0o077;

const path = text({ expected: 'a path', pattern: '^[^\\n]+$' });

const webhookSchema = object(
  {
    name: required(
      text({ expected: 'lower-case letters, digits and `-`', pattern: '^[a-z0-9][a-z0-9-]{0,39}$' }),
      'What messages call it.',
      { advice: 'write `name: security-team`' },
    ),
    url: optional(text({ expected: 'a URL', pattern: '^\\S+$' }), 'Where alerts are posted.'),
    url_file: optional(path, 'File that holds the URL, where that is a secret; of mode 0600.'),
    format: optional(oneOf('generic', 'slack'), 'What is posted.', { fallback: '`generic`' }),
    secret_file: optional(path, 'File that holds the key of signatures; of mode 0600.'),
    ca_file: optional(
      path,
      'Certificates (PEM) of the authorities that are trusted, instead of those of Node.js.',
    ),
    events: optional(
      list(oneOf(...ALERT_ACTIONS), { min: 1, max: ALERT_ACTIONS.length, expected: 'a list of actions' }),
      'Only alerts with these actions.',
      { fallback: 'all' },
    ),
  },
  { expected: 'a mapping with `name` and `url`' },
);

const configSchema = object(
  {
    webhooks: optional(
      list(webhookSchema, { max: MAX_WEBHOOKS, expected: 'a list of webhooks' }),
      'Whom to tell of alerts.',
    ),
  },
  { expected: 'a mapping with `webhooks`' },
);

export interface Webhook {
  readonly name: string;
  /** https:, or http: to this machine. */
  readonly url: URL;
  readonly format: 'generic' | 'slack';
  /** Signs requests; absent: they are not signed. */
  readonly secret?: Buffer;
  /** PEM; absent: the authorities that Node.js knows. */
  readonly ca?: string;
  readonly events: readonly (typeof ALERT_ACTIONS)[number][];
}

export interface AlertConfig {
  readonly webhooks: readonly Webhook[];
}

/** Reads `alerts.yml` of the directory and the files it names. Without it there are no webhooks. Throws CONFIG_INVALID. */
export function readAlertConfig(policyDirectory: string): AlertConfig {
  const file = join(policyDirectory, 'alerts.yml');
  const stats = statSync(file, { throwIfNoEntry: false });
  if (!stats) return { webhooks: [] };
  requireUnchangeable(file, stats);
  const config = parseConfig(configSchema, read(file, MAX_CONFIG_BYTES));
  if (config === undefined) return { webhooks: [] };

  const names = new Set<string>();
  const webhooks = (config.webhooks ?? []).map((entry): Webhook => {
    const where = `${file}: webhook \`${entry.name}\``;
    if (names.has(entry.name)) throw invalid(`${where} is defined twice`, 'give each a name of its own');
    names.add(entry.name);
    const at = (name: string): string => resolve(dirname(file), name);
    if ((entry.url === undefined) === (entry.url_file === undefined)) {
      throw invalid(`${where} needs either \`url\` or \`url_file\``, 'write `url: https://…`');
    }
    const written = entry.url ?? readPrivate(at(entry.url_file ?? ''), where).toString('utf8');
    const secret = entry.secret_file === undefined ? undefined : readPrivate(at(entry.secret_file), where);
    if (secret && secret.length < MIN_SECRET_BYTES) {
      throw invalid(
        `${where}: the key in ${entry.secret_file} has fewer than ${MIN_SECRET_BYTES} bytes`,
        'make one with: openssl rand -hex 32',
      );
    }
    return {
      name: entry.name,
      url: webhookUrl(written, where),
      format: entry.format ?? 'generic',
      ...(secret === undefined ? {} : { secret }),
      ...(entry.ca_file === undefined ? {} : { ca: read(at(entry.ca_file), MAX_CONFIG_BYTES).text }),
      events: entry.events ?? ALERT_ACTIONS,
    };
  });
  return { webhooks };
}

/** Messages do not repeat the URL: it may be a secret. */
function webhookUrl(written: string, where: string): URL {
  const url = URL.parse(written);
  if (!url || !['https:', 'http:'].includes(url.protocol)) {
    throw invalid(`${where}: its URL is none of https:`, 'write `url: https://…`');
  }
  if (url.username !== '' || url.password !== '') {
    throw invalid(`${where}: its URL holds a name or password`, 'sign requests instead: `secret_file`');
  }
  if (url.protocol === 'http:' && !/^(localhost|127(\.[0-9]{1,3}){3}|\[::1\])$/.test(url.hostname)) {
    throw invalid(
      `${where}: alerts would cross the network in the clear`,
      'write https:; http: will do to this machine only (localhost, 127.0.0.1, [::1])',
    );
  }
  return url;
}

/** Content of a file with a secret, without the line end that editors add. */
function readPrivate(file: string, where: string): Buffer {
  const stats = statSync(file, { throwIfNoEntry: false });
  if (!stats) throw invalid(`${where}: ${file} does not exist`, 'put the secret there, with mode 0600');
  requireUnchangeable(file, stats);
  if ((stats.mode & GROUP_OR_OTHERS) !== 0) {
    throw invalid(`${where}: ${file} can be read by other users`, `run: chmod 600 ${file}`);
  }
  return Buffer.from(read(file, MAX_SECRET_FILE_BYTES).text.trim());
}

function read(file: string, maxBytes: number): ReturnType<typeof readSource> {
  return readSource(file, file, { maxBytes, code: 'CONFIG_INVALID', missingCode: 'CONFIG_INVALID' });
}

function invalid(message: string, hint: string): CtError {
  return new CtError('CONFIG_INVALID', message, { hint });
}
