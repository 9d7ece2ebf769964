/** The contents of files on their way into an image: one after the other, without names. */
import { type FileHandle, open } from 'node:fs/promises';
import { toCtError } from '../../core/errors.ts';
import { refused } from './refusal.ts';

const BUFFER_BYTES = 1024 * 1024;

export interface Extent {
  readonly offset: number;
  readonly sizeBytes: number;
}

export class ContentSpool implements AsyncDisposable {
  readonly #file: FileHandle;
  readonly #maxBytes: number;
  readonly #buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  #buffered = 0;
  #flushedBytes = 0;

  private constructor(file: FileHandle, maxBytes: number) {
    this.#file = file;
    this.#maxBytes = maxBytes;
  }

  /** Creates `path`, which the caller removes. More than `maxBytes` are refused with IMAGE_IMPORT_REFUSED. */
  static async create(path: string, maxBytes: number): Promise<ContentSpool> {
    return new ContentSpool(await open(path, 'wx+', 0o600), maxBytes);
  }

  /** Where the next byte goes. */
  get position(): number {
    return this.#flushedBytes + this.#buffered;
  }

  /** Throws if `bytes` more would be too many; before they are read. */
  expect(bytes: number): void {
    if (this.position + bytes > this.#maxBytes) {
      throw refused(`the files of the image have more than ${this.#maxBytes} bytes`, {
        hint: '`--max-size` allows more',
      });
    }
  }

  async write(chunk: Uint8Array): Promise<void> {
    this.expect(chunk.length);
    for (let at = 0; at < chunk.length; ) {
      if (this.#buffered === BUFFER_BYTES) await this.#flush();
      const part = chunk.subarray(at, at + BUFFER_BYTES - this.#buffered);
      this.#buffer.set(part, this.#buffered);
      this.#buffered += part.length;
      at += part.length;
    }
  }

  async put(bytes: Uint8Array): Promise<Extent> {
    const offset = this.position;
    await this.write(bytes);
    return { offset, sizeBytes: bytes.length };
  }

  /** Up to `length` bytes of `extent` from `start` on; fewer only at its end. */
  async read(extent: Extent, start: number, length: number): Promise<Buffer> {
    await this.#flush();
    const wanted = Math.max(0, Math.min(length, extent.sizeBytes - start));
    const bytes = Buffer.allocUnsafe(wanted);
    for (let at = 0; at < wanted; ) {
      const { bytesRead } = await this.#file.read(bytes, at, wanted - at, extent.offset + start + at);
      if (bytesRead === 0) throw new Error('the contents of files are shorter than they were');
      at += bytesRead;
    }
    return bytes;
  }

  async #flush(): Promise<void> {
    try {
      for (let at = 0; at < this.#buffered; ) {
        const { bytesWritten } = await this.#file.write(
          this.#buffer,
          at,
          this.#buffered - at,
          this.#flushedBytes + at,
        );
        at += bytesWritten;
      }
    } catch (error) {
      throw toCtError(error);
    }
    this.#flushedBytes += this.#buffered;
    this.#buffered = 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}
