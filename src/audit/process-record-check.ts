/**
 * Whether process records (src/protocol/audit.ts) are exactly as their layout says. The bytes are the guest's; nothing is
 * read beyond the payload, and nothing is kept.
 */
import {
  DeniedWhat,
  FileWhat,
  MAX_PROCESS_RECORD_BYTES,
  PROCESS_RECORD_BYTES,
  ProcessRecord,
} from '../protocol/audit.ts';

/** Bytes before the strings, by kind. */
const FIXED_BYTES: Readonly<Record<number, number>> = {
  [ProcessRecord.fork]: 56,
  [ProcessRecord.exec]: 96,
  [ProcessRecord.exit]: 44,
  [ProcessRecord.connect]: 68,
  [ProcessRecord.denied]: 80,
  [ProcessRecord.file]: 48,
};
const DENIED_WHAT: ReadonlySet<number> = new Set(Object.values(DeniedWhat));
const FILE_WHAT: ReadonlySet<number> = new Set(Object.values(FileWhat));
/** 2 ** 53 nanoseconds, 104 days: no guest is up for longer, and up to there numbers are exact. */
const MAX_TIME_HIGH = 0x20_0000;

/** What is wrong with the record that begins at `at`, or undefined. `end` is that of the payload. */
export function processRecordProblem(
  view: DataView,
  bytes: Buffer,
  at: number,
  end: number,
): string | undefined {
  if (at + PROCESS_RECORD_BYTES > end) return 'it is cut short';
  const length = view.getUint16(at, true);
  const kind = bytes[at + 2] as number;
  const fixed = FIXED_BYTES[kind];
  if (fixed === undefined) return `there is no kind ${kind}`;
  if (length > MAX_PROCESS_RECORD_BYTES || at + length > end) return `${length} bytes are too many`;
  if (length < fixed) return `${length} bytes are too few`;
  if ((bytes[at + 3] as number) > (kind === ProcessRecord.denied ? 3 : 1)) return 'it has unknown flags';
  if (view.getUint32(at + 20, true) >= MAX_TIME_HIGH || view.getUint32(at + 28, true) >= MAX_TIME_HIGH) {
    return 'its time is out of range';
  }
  const body = at + PROCESS_RECORD_BYTES;
  const strings = at + fixed;
  const stringBytes = length - fixed;
  switch (kind) {
    case ProcessRecord.fork:
      if (view.getUint32(body + 4, true) !== 0) return RESERVED;
      if (view.getUint32(body + 12, true) >= MAX_TIME_HIGH) return 'its time is out of range';
      return stringBytes === 0 ? undefined : 'it has bytes to spare';
    case ProcessRecord.exec: {
      const [binary, args, cwd] = [0, 2, 4].map((field) => view.getUint16(body + field, true)) as [
        number,
        number,
        number,
      ];
      if (binary + args + cwd !== stringBytes) return 'its strings do not add up';
      if (view.getUint16(body + 6, true) !== 0 || view.getUint32(body + 12, true) !== 0) return RESERVED;
      return hasNul(bytes, strings, binary) || hasNul(bytes, strings + binary + args, cwd) ? NUL : undefined;
    }
    case ProcessRecord.exit:
      return stringBytes === 0 ? undefined : 'it has bytes to spare';
    case ProcessRecord.connect:
      if ((view.getUint32(body + 4, true) & 0xff_ff_ff_00) !== 0) return RESERVED;
      return stringBytes === 0 ? undefined : 'it has bytes to spare';
    default: {
      const what = kind === ProcessRecord.denied ? DENIED_WHAT : FILE_WHAT;
      if (!what.has(bytes[body] as number)) return `nothing is called ${bytes[body]}`;
      if (bytes[body + 1] !== 0) return RESERVED;
      if (view.getUint16(body + 2, true) !== stringBytes) return 'its path does not add up';
      return hasNul(bytes, strings, stringBytes) ? NUL : undefined;
    }
  }
}

const RESERVED = 'it has something where zeros are due';
const NUL = 'a string has a NUL byte';

function hasNul(bytes: Buffer, at: number, length: number): boolean {
  return bytes.subarray(at, at + length).includes(0);
}
