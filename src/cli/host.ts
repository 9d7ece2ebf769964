/** The host daemon, for commands that ask it about runs. */
import { ctHomePath } from '../core/paths.ts';
import type { HostClient } from '../host/client.ts';

/**
 * The daemon that runs, also one of another build: its runs are what is asked about. Starts one if there is none, since
 * only the daemon may open the record. Throws HOST_UNREACHABLE.
 */
export async function anyHost(): Promise<HostClient> {
  const { connectHost, findHost } = await import('../host/client.ts');
  const ctHome = ctHomePath();
  return (await findHost(ctHome)) ?? (await connectHost({ ctHome }));
}
