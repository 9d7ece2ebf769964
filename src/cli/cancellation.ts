/** Ctrl-C and its relatives. */
import { CtError } from '../core/errors.ts';
import type { Output } from './output.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export interface Cancellation extends Disposable {
  /** Aborted with a CANCELLED error by the first signal, or when nobody reads our output any more. */
  readonly signal: AbortSignal;
}

/**
 * From now until disposal the first SIGINT, SIGTERM or SIGHUP aborts the signal, so that VMs are destroyed in order;
 * the second ends this process by that signal, at once (the host daemon destroys the VMs of clients that vanish).
 */
export function cancelOnSignals(output: Output): Cancellation {
  const controller = new AbortController();
  const onSignal = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) {
      restore();
      process.kill(process.pid, name);
      return;
    }
    if (output.isTty.stderr) output.write('stderr', '\nct: cancelling; once more leaves at once\n');
    controller.abort(new CtError('CANCELLED', `the run was cancelled (${name})`));
  };
  const restore = (): void => {
    for (const name of SIGNALS) process.off(name, onSignal);
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  output.onBroken = () => {
    controller.abort(new CtError('CANCELLED', 'the run was cancelled: nobody reads its output any more'));
  };
  return { signal: controller.signal, [Symbol.dispose]: restore };
}
