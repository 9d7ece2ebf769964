/** `ct vuln db update` and `ct vuln db status`. */
import { resolve } from 'node:path';
import { CtError } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { policyDirectory } from '../../../host/policy-source.ts';
import { asOf, checkAge } from '../../../image/scan/age.ts';
import { readScanConfig, type StaleLimits } from '../../../image/scan/config.ts';
import { type DatabaseStatus, VulnDatabase } from '../../../image/scan/database.ts';
import { isUrl } from '../../../image/scan/download.ts';
import { updateDatabase } from '../../../image/scan/update.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { formatBytes } from '../../render/format.ts';
import { formatTable } from '../../render/table.ts';
import { Terminal } from '../../render/terminal.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = ctHomePath();
  const config = readScanConfig(policyDirectory({ ctHome, env: process.env }));
  const [action = ''] = parsed.positionals;
  if (!['update', 'status'].includes(action)) {
    throw new CtError('USAGE', `ct vuln db cannot \`${action}\``, { hint: 'it is one of: update, status' });
  }
  const status =
    action === 'update'
      ? await update(ctHome, parsed.values('from'), config.feeds, output)
      : readStatus(ctHome);
  if (parsed.has('json')) {
    const document = {
      version: 1,
      ...status,
      asOf: asOf(status).toISOString(),
      ...staleness(status, config.stale),
    };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
  } else {
    output.write('stdout', describe(status, config.stale));
  }
  return 0;
}

function readStatus(ctHome: string): DatabaseStatus {
  using database = new VulnDatabase(ctHome);
  return database.status;
}

async function update(
  ctHome: string,
  given: readonly string[],
  configured: readonly string[],
  output: Output,
): Promise<DatabaseStatus> {
  using cancellation = cancelOnSignals(output);
  using terminal = new Terminal(output, { live: output.isTty.stderr && process.env['CI'] !== 'true' });
  let status: string | undefined;
  terminal.showStatus(() => status);
  return updateDatabase({
    ctHome,
    feeds: given.length > 0 ? given.map((feed) => (isUrl(feed) ? feed : resolve(feed))) : configured,
    now: new Date(),
    signal: cancellation.signal,
    onProgress: (what) => {
      status = what;
    },
  });
}

/** `state`: what a scan does now. */
function staleness(
  status: DatabaseStatus,
  limits: StaleLimits,
): { readonly state: 'current' | 'old' | 'stale'; readonly warning?: string } {
  try {
    const warning = checkAge('the database', asOf(status), limits, new Date());
    return warning === undefined ? { state: 'current' } : { state: 'old', warning };
  } catch (error) {
    return { state: 'stale', warning: (error as Error).message };
  }
}

function describe(status: DatabaseStatus, limits: StaleLimits): string {
  const { revision, sizeBytes, ecosystems, feeds } = status;
  const { warning = 'the database is current' } = staleness(status, limits);
  const entries = Object.entries(ecosystems).map(([name, count]) => `${name} ${count}`);
  return [
    formatTable([
      ['FEED', 'KIND', 'AS OF', 'READ', 'RECORDS', 'DIGEST'],
      ...feeds.map(({ location, kind, asOf: of, readAt, records, digest }) => [
        location,
        kind,
        of.slice(0, 16),
        readAt.slice(0, 16),
        String(records),
        digest.slice(0, 19),
      ]),
    ]),
    `entries: ${entries.join(', ')}; ${formatBytes(sizeBytes)}; revision ${revision.slice(0, 19)}\n`,
    `${warning}\n`,
  ].join('');
}
