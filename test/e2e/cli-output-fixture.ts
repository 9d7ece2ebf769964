/** Writes to stdout and stderr through Output until it is cancelled, as a run with a talkative job does. */
import { cancelOnSignals } from '../../src/cli/cancellation.ts';
import { Output } from '../../src/cli/output.ts';

const output = new Output();
using cancellation = cancelOnSignals(output);
const line = `${'x'.repeat(8191)}\n`;
const lines = Number(process.argv[2]);
let written = 0;
for (; written < lines && !cancellation.signal.aborted; written++) {
  const wait = output.write(written % 2 === 0 ? 'stdout' : 'stderr', line);
  if (wait) {
    const aborted = new Promise((resolve) => cancellation.signal.addEventListener('abort', resolve));
    await Promise.race([wait, aborted]);
  }
}
if (process.argv[3] === 'stay') setInterval(() => {}, 1000);
else if (!cancellation.signal.aborted) await output.flush();
process.exitCode = cancellation.signal.aborted ? 130 : 0;
