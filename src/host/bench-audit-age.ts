/**
 * How old events are when they come to the host: a VM of the benchmark's own, whose record this process keeps as a link process
 * does (AuditRecorder), and whose clock it sets against its own.
 */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ParsedFrame } from '../audit/frame-parser.ts';
import { AuditRecorder } from '../audit/recorder.ts';
import { decodeProcesses } from '../audit/records.ts';
import { CtError } from '../core/errors.ts';
import { launcherPath } from '../core/install.ts';
import { startSession } from '../guest/handshake.ts';
import { GuestSession } from '../guest/session.ts';
import { encodeCpio } from '../image/cpio.ts';
import { ImageStore } from '../image/store.ts';
import { AUDIT_FRAME_BYTES, AuditFrame, SYSCALL_RECORD_BYTES } from '../protocol/audit.ts';
import type { Accelerator } from '../protocol/run.ts';
import type { MachineShape } from '../vmm/driver.ts';
import { QemuDriver, tscKhz } from '../vmm/qemu/driver.ts';
import { QEMU_PATH, qemuVersion } from '../vmm/qemu/version.ts';
import { volumeBlocks } from '../vmm/volume.ts';

const READY_TIMEOUT_MS = 60_000;
const POSITION_TIMEOUT_MS = 20_000;
const VOLUME_CIPHER = '64:aes-xts-plain64';
const NS_PER_MS = 1e6;
/** Of the histogram: a tenth of a millisecond, up to ten seconds. */
const BINS_PER_MS = 10;
const BINS = 100_000;

/** A job that does little, then much, then as many calls as it can. */
const SCRIPT = `for i in $(seq 60); do sleep 0.1; /bin/true; done
find / -xdev > /dev/null 2>&1
dd if=/dev/zero of=/dev/null bs=1 count=300000 status=none
`;

export interface AgeFigures {
  /** Of every event, in ms: its time by the guest's clock → this process has its frame and has checked it. */
  readonly ms: { readonly p50: number; readonly p95: number; readonly max: number };
  readonly events: number;
}

/** Throws JOB_FAILED if the job fails or its record is not whole; nothing of the VM is left behind. */
export async function measureAge(options: {
  readonly ctHome: string;
  /** Private; what the VM and the record need lies there. */
  readonly directory: string;
  readonly shape: MachineShape;
  readonly accelerator: Accelerator;
  readonly signal: AbortSignal;
}): Promise<AgeFigures> {
  const { ctHome, directory, shape, accelerator, signal } = options;
  const images = new ImageStore(ctHome);
  const manifest = await images.manifest(shape.image);
  const blocks = await volumeBlocks({ scratchDirectory: directory, launcherPath, sizeMib: shape.volumeMib });
  const initramfsPath = join(directory, 'age-initramfs');
  const own = readFileSync(await images.checkedBlobPath(manifest.initramfs));
  const segment = encodeCpio([{ name: 'volume.blocks', mode: 0o100400, data: blocks }]);
  writeFileSync(initramfsPath, Buffer.concat([own, segment]), { mode: 0o600 });
  chmodSync(initramfsPath, 0o444); // the VMM is another user
  const driver = new QemuDriver({
    ...{ launcherPath, qemuPath: QEMU_PATH, version: await qemuVersion(), accelerator, tscKhz: tscKhz() },
    volumeDirectory: directory,
  });
  const vm = driver.boot({
    ...{ shape, manifest, initramfsPath },
    kernelPath: await images.checkedBlobPath(manifest.kernel),
    rootfsPath: await images.checkedBlobPath(manifest.rootfs),
  });
  await using cleanup = new AsyncDisposableStack();
  cleanup.defer(() => vm.destroy());
  const { session } = await GuestSession.open(
    vm.control,
    { hostname: 'ct-bench-audit', volumeCipher: VOLUME_CIPHER },
    READY_TIMEOUT_MS,
  );
  cleanup.defer(() => session.close());
  await startSession(vm.audit, READY_TIMEOUT_MS);
  const ages = new Ages();
  const record = join(directory, 'age-record');
  mkdirSync(record, { mode: 0o700 });
  const recorder = new AuditRecorder({
    channel: vm.audit,
    directory: record,
    run: 'bench',
    cpus: shape.cpus,
    onFrame: (frame) => ages.add(frame, performance.now()),
  });
  signal.throwIfAborted();
  const { user, env } = manifest;
  const result = await session.exec({
    argv: ['sh', '-c', SCRIPT],
    env: { ...env, HOME: user.home },
    cwd: '/',
    uid: user.uid,
    gid: user.gid,
    onOutput: () => {},
  });
  const position = await session.auditPosition(POSITION_TIMEOUT_MS);
  const isWhole = position !== undefined && (await recorder.reaches(position, POSITION_TIMEOUT_MS));
  const { violation } = await recorder.finish();
  if (result.kind !== 'exited' || result.code !== 0 || !isWhole || violation) {
    throw new CtError('JOB_FAILED', `no ages of events: ${violation?.message ?? JSON.stringify(result)}`);
  }
  return ages.figures();
}

/** Frames are late, never early: the one that came soonest after its last event says how the clocks differ. */
class Ages {
  readonly #frames: { readonly atMs: number; readonly times: Float64Array }[] = [];
  #offsetMs = Number.POSITIVE_INFINITY;

  add({ bytes, type, first, records, lastNs }: ParsedFrame, atMs: number): void {
    if (type === AuditFrame.heartbeat) return;
    const payload = bytes.subarray(AUDIT_FRAME_BYTES);
    const times = new Float64Array(records);
    if (type === AuditFrame.syscalls) {
      for (let index = 0; index < records; index += 1)
        times[index] = Number(payload.readBigUInt64LE(index * SYSCALL_RECORD_BYTES)) / NS_PER_MS;
    } else {
      for (const [index, { timeNs }] of decodeProcesses(payload, { first, records }).entries())
        times[index] = Number(timeNs) / NS_PER_MS;
    }
    this.#offsetMs = Math.min(this.#offsetMs, atMs - lastNs / NS_PER_MS);
    this.#frames.push({ atMs, times });
  }

  figures(): AgeFigures {
    const bins = new Uint32Array(BINS);
    let events = 0;
    let max = 0;
    for (const { atMs, times } of this.#frames) {
      for (const time of times) {
        const age = Math.max(0, atMs - this.#offsetMs - time);
        const bin = Math.min(BINS - 1, Math.floor(age * BINS_PER_MS));
        bins[bin] = (bins[bin] as number) + 1;
        max = Math.max(max, age);
        events += 1;
      }
    }
    const percentile = (percent: number): number => {
      let seen = 0;
      const bin = bins.findIndex((count) => {
        seen += count;
        return seen >= (percent / 100) * events;
      });
      return (bin + 1) / BINS_PER_MS;
    };
    return { ms: { p50: percentile(50), p95: percentile(95), max: Math.round(max * 10) / 10 }, events };
  }
}
