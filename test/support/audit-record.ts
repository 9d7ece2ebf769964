/** A record of a made-up run, stored and sealed as the product does it. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { FrameParser, MAX_FRAME_BYTES } from '../../src/audit/frame-parser.ts';
import { HOST_PUBLIC_KEY_NAME, hostSigner, type SealTrust, trustKeyFile } from '../../src/audit/host-key.ts';
import { type SealFacts, sealAudit } from '../../src/audit/seal.ts';
import { type AuditLimits, AuditWriter, DEFAULT_AUDIT_LIMITS } from '../../src/audit/segment-writer.ts';
import type { AuditSummary } from '../../src/audit/summary.ts';
import { SyntheticGuest } from './audit-frames.ts';

export const CPUS = 2;

export function factsOf(run: string): SealFacts {
  return {
    run,
    image: `sha256:${'12'.repeat(32)}`,
    policy: 'rev-1',
    vmm: 'qemu 10.0',
    accelerator: 'tcg',
    outcome: 'success',
    sealedAt: '2026-01-02T03:04:05.000Z',
  };
}

/** So small that a record of a few hundred kilobytes has several segments of several blocks. */
export const SMALL_LIMITS: AuditLimits = {
  ...DEFAULT_AUDIT_LIMITS,
  blockBytes: MAX_FRAME_BYTES,
  segmentBytes: 60_000,
  flushMs: 60_000,
};

/** Frames of `seed` written to `directory`, which is made. */
export async function storeRecord(
  directory: string,
  run: string,
  frames: readonly Buffer[],
  limits: AuditLimits = SMALL_LIMITS,
): Promise<AuditSummary> {
  mkdirSync(directory, { recursive: true });
  const writer = new AuditWriter(directory, run, limits);
  let nowMs = 1_700_000_000_000;
  const parser = new FrameParser(CPUS, (frame) => {
    nowMs += 1;
    writer.append(frame, nowMs);
  });
  for (const frame of frames) {
    parser.push(frame);
    await writer.ready();
  }
  return { ...(await writer.finish()), counts: parser.counts };
}

export function framesOf(seed: number, count = 300): Buffer[] {
  return new SyntheticGuest(seed, CPUS).frames(count);
}

export interface SealedRecord {
  readonly directory: string;
  readonly run: string;
  readonly summary: AuditSummary;
  readonly trust: SealTrust;
}

/** In `home`/audit/`run`, sealed with the key of `home`. */
export async function sealedRecord(
  home: string,
  run: string,
  frames: readonly Buffer[] = framesOf(1),
  violation?: AuditSummary['violation'],
): Promise<SealedRecord> {
  const directory = join(home, 'audit', run);
  const keys = join(home, 'keys');
  const stored = await storeRecord(directory, run, frames);
  const summary = violation ? { ...stored, violation } : stored;
  await sealAudit(directory, factsOf(run), summary, await hostSigner(keys));
  return { directory, run, summary, trust: await trustKeyFile(join(keys, HOST_PUBLIC_KEY_NAME)) };
}
