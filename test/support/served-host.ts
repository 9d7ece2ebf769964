/** The host daemon's server in the process of a test, with machines of the test's own. */
import { once } from 'node:events';
import { join } from 'node:path';
import type { Alert } from '../../src/audit/alert.ts';
import { Capacity } from '../../src/host/capacity.ts';
import { findHost, type HostClient } from '../../src/host/client.ts';
import { Dialer } from '../../src/host/dialer.ts';
import { PolicyKeeper } from '../../src/host/policy.ts';
import { Runs } from '../../src/host/runs.ts';
import { HostServer, type HostServerOptions } from '../../src/host/server.ts';
import { openGate } from './open-gate.ts';

export interface ServedHost extends AsyncDisposable {
  readonly client: HostClient;
  /** Filed so far. */
  readonly alerts: Alert[];
}

/** Listens in `sockets` for `ctHome`, whose policy counts. Disposal waits for its jobs. */
export async function servedHost(
  options: Pick<HostServerOptions, 'ctHome' | 'machines' | 'presets'> & {
    readonly sockets: string;
    /** Lets every image in if absent. */
    readonly imageGate?: HostServerOptions['imageGate'];
  },
): Promise<ServedHost> {
  const { ctHome, machines, presets, sockets } = options;
  const alerts: Alert[] = [];
  const runs = new Runs({ ctHome });
  const server = new HostServer({
    ctHome,
    machines,
    capacity: new Capacity({ cpus: 64, memoryMib: 1024 * 1024 }),
    runs,
    presets,
    policy: new PolicyKeeper({ ctHome, env: {}, presets, systemDirectory: join(ctHome, 'none') }),
    alerts: { file: (alert) => alerts.push(alert) },
    imageGate: options.imageGate ?? openGate,
    dialer: new Dialer(),
    onActivity: () => {},
    onShutdown: () => {},
  });
  const dispose = async (): Promise<void> => {
    server.http.close();
    server.http.closeAllConnections();
    await server.drained();
    runs.close();
  };
  server.http.listen(join(sockets, 'host.sock'));
  await once(server.http, 'listening');
  const client = await findHost(ctHome);
  if (client) return { client, alerts, [Symbol.asyncDispose]: dispose };
  await dispose();
  throw new Error('the daemon cannot be reached');
}
