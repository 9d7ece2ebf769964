/** DNS messages as a stub resolver writes them, and the parts of an answer that matters to one. Small: RFC 1035, 4. */
export function dnsQuery(name: string, type: number, options: { id?: number; edns?: boolean } = {}): Buffer {
  const labels = name === '' ? [] : name.split('.');
  const header = Buffer.from([0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, options.edns ? 1 : 0]);
  header.writeUInt16BE(options.id ?? 0x1234);
  return Buffer.concat([
    header,
    ...labels.map((label) => Buffer.concat([Buffer.of(label.length), Buffer.from(label, 'latin1')])),
    Buffer.of(0, type >> 8, type & 0xff, 0, 1),
    options.edns ? Buffer.of(0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0) : Buffer.alloc(0),
  ]);
}

export interface DnsAnswer {
  readonly id: number;
  readonly rcode: number;
  /** Data of each record, in hexadecimal. */
  readonly answers: readonly string[];
  readonly ttl: number | undefined;
  readonly edns: boolean;
}

export function readDnsAnswer(message: Buffer): DnsAnswer {
  const flags = message.readUInt16BE(2);
  if ((flags & 0x8000) === 0) throw new Error('no answer');
  let at = 12;
  for (let questions = message.readUInt16BE(4); questions > 0; questions--) {
    while (message[at] !== 0) at += 1 + (message[at] ?? 0);
    at += 5;
  }
  const answers: string[] = [];
  let ttl: number | undefined;
  let rcode = flags & 15;
  let edns = false;
  const records = message.readUInt16BE(6) + message.readUInt16BE(10);
  for (let index = 0; index < records; index++) {
    at += message[at] === 0 ? 1 : 2;
    const length = message.readUInt16BE(at + 8);
    if (message.readUInt16BE(at) === 41) {
      edns = true;
      rcode |= (message[at + 4] ?? 0) << 4;
    } else {
      ttl = message.readUInt32BE(at + 4);
      answers.push(message.toString('hex', at + 10, at + 10 + length));
    }
    at += 10 + length;
  }
  if (at !== message.length) throw new Error('the answer does not end where it says');
  return { id: message.readUInt16BE(0), rcode, answers, ttl, edns };
}
