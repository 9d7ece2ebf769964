/** Which QEMU this machine has. */
import { runProgram } from '../../core/run-program.ts';

export const QEMU_PATH = '/usr/bin/qemu-system-x86_64';

/** Version of QEMU, `7.2.22`. Throws REQUIREMENT_MISSING or VMM_START_FAILED. */
export async function qemuVersion(qemuPath: string = QEMU_PATH): Promise<string> {
  const output = await runProgram({
    file: qemuPath,
    args: ['--version'],
    maxOutputBytes: 4096,
    failureCode: 'VMM_START_FAILED',
  });
  return /version (\d+\.\d+\.\d+)/.exec(output.toString())?.[1] ?? 'unknown';
}
