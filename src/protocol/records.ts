/**
 * Records: the framing used inside every bidirectional stream of the product.
 *
 *     offset 0  u8   type
 *     offset 1  u32  payload length, big endian, at most MAX_RECORD_BYTES
 *     offset 5  payload
 *
 * The bytes may be controlled by the guest: the length is checked before anything is allocated.
 */
import { CtError } from '../core/errors.ts';
import { MAX_RECORD_BYTES } from './limits.ts';

export const RECORD_HEADER_BYTES = 5;

/** An object each: a few hundred kilobytes at most for a record that comes byte by byte. */
const MAX_PIECES = 4096;

/** One record as bytes. Throws HOST_PROTOCOL if the payload exceeds MAX_RECORD_BYTES: split it before. */
export function encodeRecord(type: number, payload: Uint8Array | string = ''): Buffer {
  const length = typeof payload === 'string' ? Buffer.byteLength(payload) : payload.length;
  if (length > MAX_RECORD_BYTES) {
    throw new CtError('HOST_PROTOCOL', `a record of ${length} bytes exceeds ${MAX_RECORD_BYTES}`);
  }
  const record = Buffer.allocUnsafe(RECORD_HEADER_BYTES + length);
  record[0] = type;
  record.writeUInt32BE(length, 1);
  if (typeof payload === 'string') record.write(payload, RECORD_HEADER_BYTES);
  else record.set(payload, RECORD_HEADER_BYTES);
  return record;
}

/** `data` cut into as many records as it needs; an empty `data` gives none. */
export function* encodeChunked(type: number, data: Uint8Array): Generator<Buffer> {
  for (let at = 0; at < data.length; at += MAX_RECORD_BYTES) {
    yield encodeRecord(type, data.subarray(at, at + MAX_RECORD_BYTES));
  }
}

/**
 * Incremental decoder. Calls `onRecord` once per complete record; the payload is only valid during the call
 * unless copied. Holds at most one record plus one input chunk. Throws GUEST_PROTOCOL on an oversized record.
 */
export class RecordDecoder {
  /** Of an incomplete record. Put together only when it is complete: a peer may send it byte by byte. */
  #pieces: Buffer[] = [];
  #pendingBytes = 0;
  /** With fewer bytes than this there is nothing to do. */
  #wantedBytes = RECORD_HEADER_BYTES;
  readonly #onRecord: (type: number, payload: Buffer) => void;

  constructor(onRecord: (type: number, payload: Buffer) => void) {
    this.#onRecord = onRecord;
  }

  push(chunk: Buffer): void {
    if (this.#pendingBytes + chunk.length < this.#wantedBytes) {
      this.#keep(chunk);
      return;
    }
    let data = this.#pendingBytes === 0 ? chunk : Buffer.concat([...this.#pieces, chunk]);
    let wantedBytes = RECORD_HEADER_BYTES;
    while (data.length >= RECORD_HEADER_BYTES) {
      const length = data.readUInt32BE(1);
      if (length > MAX_RECORD_BYTES) {
        throw new CtError(
          'GUEST_PROTOCOL',
          `a record announces ${length} bytes; the limit is ${MAX_RECORD_BYTES}`,
        );
      }
      wantedBytes = RECORD_HEADER_BYTES + length;
      if (data.length < wantedBytes) break;
      this.#onRecord(data[0] as number, data.subarray(RECORD_HEADER_BYTES, wantedBytes));
      data = data.subarray(wantedBytes);
      wantedBytes = RECORD_HEADER_BYTES;
    }
    this.#wantedBytes = wantedBytes;
    this.#pieces = [];
    this.#pendingBytes = 0;
    if (data.length > 0) this.#keep(data);
  }

  /** Takes the bytes of an incomplete record out, for whoever reads on. */
  takePending(): Buffer {
    const pending = Buffer.concat(this.#pieces);
    this.#pieces = [];
    this.#pendingBytes = 0;
    this.#wantedBytes = RECORD_HEADER_BYTES;
    return pending;
  }

  /** Bytes of an incomplete record; non-zero at the end of a stream means it was cut short. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  #keep(data: Buffer): void {
    this.#pieces.push(Buffer.from(data));
    this.#pendingBytes += data.length;
    if (this.#pieces.length > MAX_PIECES) this.#pieces = [Buffer.concat(this.#pieces)];
  }
}
