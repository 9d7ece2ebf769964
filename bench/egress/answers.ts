/**
 * Says something to the host daemon that is no request, again and again: the daemon refuses it in the turn of its event loop in
 * which it reads it. Arguments are its socket and its process id. When its own input ends, it prints how long answers took, in
 * ms, as JSON: `answers`, all of them; `busy`, the longest without the time that the two processes have waited for a processor,
 * which is what the daemon's event loop took for something else. A process of its own, so that the event loop of the benchmark is
 * not in the figures.
 */
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';

const PAUSE_MS = 5;
const [socketPath = '', daemonPid = ''] = process.argv.slice(2);
const answers: number[] = [];
let busy = 0;
let warmUp = 20; // the first ones compile what they run

/** Milliseconds that a main thread was ready to run and did not (Documentation/scheduler/sched-stats.rst). */
function waited(pid: string): number {
  return Number(readFileSync(`/proc/${pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6;
}

function ask(): void {
  const waitedBefore = waited(daemonPid) + waited('self');
  const startedAt = performance.now();
  const socket = connect(socketPath, () => socket.write('no request\r\n\r\n'));
  socket.once('data', () => {
    const took = performance.now() - startedAt;
    if (warmUp-- <= 0) {
      answers.push(took);
      busy = Math.max(busy, took - (waited(daemonPid) + waited('self') - waitedBefore));
    }
    socket.destroy();
    setTimeout(ask, PAUSE_MS);
  });
  socket.on('error', () => process.exit(1));
}

ask();
process.stdin.resume();
process.stdin.on('end', () => {
  process.stdout.write(JSON.stringify({ answers, busy }), () => process.exit(0));
});
