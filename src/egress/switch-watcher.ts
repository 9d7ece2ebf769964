/**
 * The server's answer to the first request of a connection that offers to go on in another protocol (RFC 9110, 15.2.2): which
 * of the two goes on. Server-controlled; interim answers (1xx) come before the final one.
 */
import { HeldBytes } from './held-bytes.ts';

/** Of all heads up to the decisive one. */
const MAX_ANSWER_BYTES = 65_536;
const STATUS_LINE = /^HTTP\/1\.[01] ([1-9][0-9]{2})(?: |$)/;

export class SwitchWatcher {
  readonly #held = new HeldBytes();
  #headStart = 0;

  /**
   * Takes the next bytes of the server: `more` (they are held), `switched`, or `http` (also if it is no answer that can be
   * read: the client's bytes are then read as HTTP). When it is decided, {@link take} has the bytes.
   */
  push(chunk: Buffer): 'more' | 'switched' | 'http' {
    this.#held.append(chunk);
    const { bytes } = this.#held;
    for (;;) {
      const lineEnd = bytes.indexOf('\r\n', this.#headStart, 'latin1');
      const headEnd = bytes.indexOf('\r\n\r\n', this.#headStart, 'latin1');
      if (lineEnd >= 0) {
        const status = STATUS_LINE.exec(bytes.toString('latin1', this.#headStart, lineEnd))?.[1];
        if (status === '101') return 'switched';
        if (status === undefined || !status.startsWith('1')) return 'http';
        if (headEnd >= 0) {
          this.#headStart = headEnd + 4;
          continue;
        }
      }
      return bytes.length > MAX_ANSWER_BYTES ? 'http' : 'more';
    }
  }

  take(): Buffer {
    return this.#held.take();
  }
}
