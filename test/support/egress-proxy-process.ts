/**
 * A program: the proxy of one VM in a process of its own, as in a link process, so that its memory and its event loop can be
 * measured. It listens for the channel, says its port to its parent, and answers `measure`. Every connection goes to the port
 * that is its argument.
 */
import { createServer } from 'node:net';
import { EgressProxy } from '../../src/egress/proxy.ts';
import { FakeControl, listen } from './egress-guest.ts';

const control = new FakeControl();
control.port = Number(process.argv[2]);

/**
 * Time of the CPU between two turns of a timer: what one that is due has to wait for. Time in which the machine ran something
 * else is not the proxy's.
 */
let [maxBusyMs, usedBefore] = [0, threadCpuMs()];
setInterval(() => {
  const used = threadCpuMs();
  maxBusyMs = Math.max(maxBusyMs, used - usedBefore);
  usedBefore = used;
}, 1);

function threadCpuMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1000;
}

const server = createServer((channel) => {
  EgressProxy.open(channel, control, 5000).then(
    (proxy) => proxy.lost.catch(() => process.exit(0)),
    () => process.exit(1),
  );
});
process.on('message', () => {
  globalThis.gc?.();
  process.send?.({ rssBytes: process.memoryUsage().rss, maxBusyMs });
  [maxBusyMs, usedBefore] = [0, threadCpuMs()];
});
process.on('disconnect', () => process.exit(0));
process.send?.({ port: await listen(server) });
