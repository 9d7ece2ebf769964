/**
 * Finds out whether KVM really runs a guest here. The device file proves nothing: it can exist, open and create VMs,
 * and still hang every guest (nested virtualisation without hardware support). So a guest is booted under a deadline.
 */
import { accessSync, constants, readFileSync } from 'node:fs';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { messageOf } from '../core/errors.ts';
import type { Accelerator } from '../protocol/run.ts';

export interface AcceleratorVerdict {
  readonly accelerator: Accelerator;
  /** Why, in words for `ct doctor`. */
  readonly reason: string;
}

interface CachedVerdict extends AcceleratorVerdict {
  readonly key: string;
}

export const KVM_BOOT_DEADLINE_MS = 10_000;

/**
 * Answers from the cache in `ctHome`, else calls `boot`, which boots a guest under the accelerator, rejects if it does not
 * become ready in time (KVM: {@link KVM_BOOT_DEADLINE_MS}), and destroys it. If KVM fails, the emulator is tried as a
 * control: when that fails too, the fault is elsewhere, and its error is thrown. Without `boot` (no image to boot yet)
 * and without a cached verdict the result is undefined. A verdict holds for one kernel, CPU, microcode and VMM version.
 */
export async function probeAccelerator(options: {
  readonly ctHome: string;
  readonly vmmVersion: string;
  readonly boot?: (accelerator: Accelerator) => Promise<void>;
  readonly kvmDevice?: string;
}): Promise<AcceleratorVerdict | undefined> {
  const unusable = kvmObstacle(options.kvmDevice ?? '/dev/kvm');
  if (unusable !== undefined) return { accelerator: 'tcg', reason: unusable };

  const key = [release(), ...cpuIdentity(), options.vmmVersion].join(' | ');
  const path = join(options.ctHome, 'accelerator.json');
  const cached = await readVerdict(path);
  if (cached?.key === key) return { accelerator: cached.accelerator, reason: cached.reason };
  if (!options.boot) return undefined;

  const verdict = await bootVerdict(options.boot);
  await mkdir(options.ctHome, { recursive: true, mode: 0o700 });
  const partial = `${path}.${process.pid}.tmp`;
  await writeFile(partial, `${JSON.stringify({ key, ...verdict } satisfies CachedVerdict)}\n`, {
    mode: 0o600,
  });
  await rename(partial, path);
  return verdict;
}

async function bootVerdict(boot: (accelerator: Accelerator) => Promise<void>): Promise<AcceleratorVerdict> {
  try {
    await boot('kvm');
    return { accelerator: 'kvm', reason: 'a guest booted under KVM' };
  } catch (error) {
    await boot('tcg');
    // What happened, and the first thing the VMM said about it.
    const why = messageOf(error).split('\n').slice(0, 2).join(': ');
    return { accelerator: 'tcg', reason: `/dev/kvm opens, but no guest booted on it: ${why}` };
  }
}

function kvmObstacle(device: string): string | undefined {
  try {
    accessSync(device, constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
      ? 'this machine has no /dev/kvm'
      : 'this user may not open /dev/kvm (usually a matter of joining the group `kvm`)';
  }
}

function cpuIdentity(): string[] {
  const text = readFileSync('/proc/cpuinfo', 'utf8');
  return ['model name', 'stepping', 'microcode'].map(
    (field) => new RegExp(`^${field}\\s*:\\s*(.*)$`, 'm').exec(text)?.[1] ?? '',
  );
}

async function readVerdict(path: string): Promise<CachedVerdict | undefined> {
  try {
    const value = JSON.parse(await readFile(path, 'utf8')) as Partial<CachedVerdict> | null;
    const { key, accelerator, reason } = value ?? {};
    if (typeof key !== 'string' || typeof reason !== 'string') return undefined;
    if (accelerator !== 'kvm' && accelerator !== 'tcg') return undefined;
    return { key, accelerator, reason };
  } catch {
    return undefined; // absent or half-written: probe again
  }
}
