/**
 * Asks the host daemon whose socket is the first argument for its state, again and again, and prints the longest time that an
 * answer took, in ms, when its own input ends: what somebody else has to wait because of its event loop. A process of its own,
 * so that the benchmark's event loop is not in the figure.
 */
import { Agent, request } from 'node:http';

const PAUSE_MS = 5;
const socketPath = process.argv[2] ?? '';
const agent = new Agent({ keepAlive: true, maxSockets: 1 });
let longestMs = 0;
let warmUp = 20; // the first ones compile what they run

function ask(): void {
  const startedAt = performance.now();
  const asking = request({ socketPath, agent, path: '/v1/info' }, (response) => {
    response.resume();
    response.on('end', () => {
      if (warmUp-- <= 0) longestMs = Math.max(longestMs, performance.now() - startedAt);
      setTimeout(ask, PAUSE_MS);
    });
  });
  asking.on('error', () => process.exit(1));
  asking.end();
}

ask();
process.stdin.resume();
process.stdin.on('end', () => {
  process.stdout.write(`${longestMs}\n`, () => process.exit(0));
});
