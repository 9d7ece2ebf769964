/** `ct cancel`. */
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError } from '../../core/errors.ts';
import type { HostClient, RunDetail } from '../../host/client.ts';
import type { ParsedOptions } from '../command.ts';
import { anyHost } from '../host.ts';
import type { Output } from '../output.ts';

/** A job that does not stop is killed after seconds; a host under load needs some more. */
const WAIT_MS = 60_000;
const POLL_MS = 50;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const host = await anyHost();
  const asked: RunDetail[] = [];
  for (const reference of parsed.positionals) asked.push(await host.cancelRun(reference));
  for (const before of asked) {
    const after = before.state === 'ended' ? before : await untilEnded(host, before.run);
    if (after.outcome === 'cancelled' && before.state !== 'ended') output.write('stdout', `${after.run}\n`);
    else output.write('stderr', `run ${after.run} had ended already (${after.outcome})\n`);
  }
  return 0;
}

async function untilEnded(host: HostClient, run: string): Promise<RunDetail> {
  const deadline = performance.now() + WAIT_MS;
  for (;;) {
    const detail = await host.run(run);
    if (detail.state === 'ended') return detail;
    if (performance.now() > deadline) {
      throw new CtError('HOST_UNREACHABLE', `run ${run} was told to end, and is still ${detail.state}`, {
        hint: `the host daemon goes on trying; see: ct inspect ${run}`,
      });
    }
    await sleep(POLL_MS);
  }
}
