/** DNS over TCP (RFC 7766) with the resolver of the VM: messages of the guest, each after a u16 with its length. */
import type { Duplex } from 'node:stream';
import { drained } from '../core/drained.ts';
import { MAX_DNS_MESSAGE_BYTES } from '../protocol/guest-link.ts';
import { HeldBytes } from './held-bytes.ts';
import type { NameService } from './name-service.ts';

/** RFC 7766, 6.2.3: a few seconds are expected of servers. */
const IDLE_MS = 30_000;

/** Answers the messages of `stream` one after another, until it ends or breaks the rules. */
export function serveDnsOverTcp(stream: Duplex, names: NameService): void {
  const idle = setTimeout(() => stream.destroy(), IDLE_MS);
  stream.on('close', () => clearTimeout(idle));
  stream.on('error', () => {});
  void answerAll(stream, names, idle).catch(() => stream.destroy());
}

async function answerAll(stream: Duplex, names: NameService, idle: NodeJS.Timeout): Promise<void> {
  const held = new HeldBytes();
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    held.append(chunk as Buffer);
    while (held.length >= 2) {
      const length = held.bytes.readUInt16BE(0);
      if (length > MAX_DNS_MESSAGE_BYTES) throw new Error('a message that is too long');
      if (held.length < 2 + length) break;
      const answer = await names.answer(held.take(2 + length).subarray(2));
      if (answer === null) throw new Error('no question');
      idle.refresh();
      const prefix = Buffer.alloc(2);
      prefix.writeUInt16BE(answer.length);
      if (!stream.write(Buffer.concat([prefix, answer]))) await drained(stream);
    }
  }
  stream.end();
}
