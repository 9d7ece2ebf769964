/** Ends host daemons that tests have started. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { findHost } from '../../src/host/client.ts';
import { descendantsOf } from './processes.ts';

/** Ends the idle daemon of `ctHome`, if one runs, and waits until it and all its processes are gone. */
export async function stopHost(ctHome: string): Promise<void> {
  const host = await findHost(ctHome);
  if (!host) return;
  const { pid } = await host.info();
  for (let attempt = 0; !(await host.shutdown()); attempt++) {
    assert.ok(attempt < 100, 'the host daemon still runs jobs');
    await sleep(100);
  }
  while (descendantsOf(pid).length > 0) await sleep(20);
}
