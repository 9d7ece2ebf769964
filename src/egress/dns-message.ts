/**
 * One DNS question of the guest and its answer (RFC 1035; EDNS: RFC 6891). Guest-controlled, at most MAX_DNS_MESSAGE_BYTES:
 *
 *     offset 0   u16  id
 *     offset 2   u16  flags: QR, opcode, AA, TC, RD, RA, Z, AD, CD, RCODE
 *     offset 4   u16  questions, answers, authorities, additionals: 1, 0, 0, and 0 or 1 (then an OPT record)
 *     offset 12  question: labels (u8 length, bytes) until a length of 0, u16 type, u16 class
 *     then       OPT, if announced: u8 0, u16 41, u16 payload size, u8 extended RCODE, u8 version, u16 flags, u16 length, data
 *
 * Nothing may follow. What is no question at all is dropped; any other that breaks the rules has an answer that says so.
 */
import { canonicalAddress } from '../policy/address.ts';
import { MAX_DNS_MESSAGE_BYTES } from '../protocol/guest-link.ts';
import { isHostName, lowerCaseAscii, MAX_NAME_CHARACTERS } from './host-name.ts';

/** Long enough that a build does not ask for each connection; the addresses never change. */
const TTL_SECONDS = 60;
/** What a message without fragmentation may have; DNS flag day 2020. */
const EDNS_PAYLOAD_BYTES = 1232;
const HEADER_BYTES = 12;
const CLASS_IN = 1;
const CLASS_ANY = 255;
const OPT_FIXED_BYTES = 11;

export const Rcode = {
  noError: 0,
  formErr: 1,
  servFail: 2,
  nxDomain: 3,
  notImp: 4,
  refused: 5,
  badVers: 16,
} as const;
export type Rcode = (typeof Rcode)[keyof typeof Rcode];

const TYPES: Readonly<Record<number, string>> = {
  1: 'A',
  2: 'NS',
  5: 'CNAME',
  6: 'SOA',
  12: 'PTR',
  13: 'HINFO',
  15: 'MX',
  16: 'TXT',
  28: 'AAAA',
  29: 'LOC',
  33: 'SRV',
  35: 'NAPTR',
  39: 'DNAME',
  43: 'DS',
  44: 'SSHFP',
  46: 'RRSIG',
  47: 'NSEC',
  48: 'DNSKEY',
  50: 'NSEC3',
  52: 'TLSA',
  64: 'SVCB',
  65: 'HTTPS',
  255: 'ANY',
  256: 'URI',
  257: 'CAA',
};
const TYPE_OPT = 41;
/** Transfers of zones, and obsolete questions of mail: none of them is a question about a name. */
const REFUSED_TYPES = new Set([251, 252, 253, 254]);

export interface DnsQuery {
  readonly id: number;
  readonly recursionDesired: boolean;
  readonly edns: boolean;
  /** As it came, to be sent back: resolvers compare even the case. */
  readonly question: Buffer;
  /** Canonical; of a name that no host can have, the nearest one above it; null: there is none. */
  readonly name: string | null;
  /** The answer, whatever is decided about the name: no host can have that one, or this is no question for a resolver. */
  readonly refusal: Rcode | undefined;
  /** Mnemonic, `TYPE123` (RFC 3597) if it has none here. */
  readonly type: string;
}

export type ParsedDns =
  | { readonly kind: 'query'; readonly query: DnsQuery }
  | { readonly kind: 'error'; readonly answer: Buffer }
  | { readonly kind: 'dropped' };

/** Never throws. */
export function parseDnsQuery(message: Buffer): ParsedDns {
  if (message.length < HEADER_BYTES || message.length > MAX_DNS_MESSAGE_BYTES) return { kind: 'dropped' };
  const flags = message.readUInt16BE(2);
  if ((flags & 0x8000) !== 0) return { kind: 'dropped' }; // an answer: to answer it could go on for ever
  const partial = {
    id: message.readUInt16BE(0),
    recursionDesired: (flags & 0x0100) !== 0,
    edns: false,
    question: Buffer.alloc(0),
  };
  const error = (rcode: Rcode, known: EncodableQuery = partial): ParsedDns => ({
    kind: 'error',
    answer: encode(known, rcode, []),
  });
  if ((flags & 0x7800) !== 0) return error(Rcode.notImp);
  if ((flags & 0x0200) !== 0) return error(Rcode.formErr);
  const additionals = message.readUInt16BE(10);
  const counts = [message.readUInt16BE(4), message.readUInt16BE(6), message.readUInt16BE(8)];
  if (counts.join() !== '1,0,0' || additionals > 1) return error(Rcode.formErr);

  const labels = parseLabels(message);
  if (!labels || labels.end + 4 > message.length) return error(Rcode.formErr);
  const type = message.readUInt16BE(labels.end);
  const dnsClass = message.readUInt16BE(labels.end + 2);
  const end = labels.end + 4;
  const opt = additionals === 1 ? parseOpt(message.subarray(end)) : undefined;
  if (opt === null || (opt === undefined && end !== message.length)) return error(Rcode.formErr);
  const known = {
    ...partial,
    edns: opt !== undefined,
    question: Buffer.from(message.subarray(HEADER_BYTES, end)),
  };
  if (opt !== undefined && opt.version !== 0) return error(Rcode.badVers, known);
  if (type === TYPE_OPT || type === 0) return error(Rcode.formErr, known);
  let refusal: Rcode | undefined = labels.isHost ? undefined : Rcode.nxDomain;
  if (dnsClass === CLASS_ANY) refusal = Rcode.notImp;
  else if (dnsClass !== CLASS_IN || REFUSED_TYPES.has(type)) refusal = Rcode.refused;
  const { name } = labels;
  return { kind: 'query', query: { ...known, name, refusal, type: TYPES[type] ?? `TYPE${type}` } };
}

/** The name of a question, or the nearest above it that a host can have; no compression, as nothing comes before it. */
function parseLabels(message: Buffer): { name: string | null; isHost: boolean; end: number } | null {
  const labels: string[] = [];
  let at = HEADER_BYTES;
  let characters = -1;
  for (;;) {
    const length = message[at];
    if (length === undefined || length > 63) return null;
    at += 1;
    if (length === 0) break;
    if (at + length > message.length) return null;
    characters += 1 + length;
    if (characters > MAX_NAME_CHARACTERS) return null;
    labels.push(message.toString('latin1', at, at + length));
    at += length;
  }
  // A dot inside of a label would make two of it.
  const first =
    labels.findLastIndex((label) => label.includes('.') || !isHostName(`${lowerCaseAscii(label)}.a`)) + 1;
  const name = lowerCaseAscii(labels.slice(first).join('.'));
  return { name: isHostName(name) ? name : null, isHost: first === 0 && isHostName(name), end: at };
}

function parseOpt(record: Buffer): { version: number } | null {
  if (record.length < OPT_FIXED_BYTES || record[0] !== 0 || record.readUInt16BE(1) !== TYPE_OPT) return null;
  return record.readUInt16BE(9) === record.length - OPT_FIXED_BYTES ? { version: record[6] ?? 0 } : null;
}

type EncodableQuery = Pick<DnsQuery, 'id' | 'recursionDesired' | 'edns' | 'question'>;

/** An answer without records: with `noError` it says that the name exists, but nothing of this type (NODATA). */
export function encodeEmptyAnswer(query: DnsQuery, rcode: Rcode): Buffer {
  return encode(query, rcode, []);
}

/** The answer to an A or AAAA question; `address` of that family, in canonical form. */
export function encodeAddressAnswer(query: DnsQuery, address: string): Buffer {
  const data = address.includes(':') ? ipv6Bytes(address) : Buffer.from(address.split('.').map(Number));
  return encode(query, Rcode.noError, [record(data.length === 4 ? 1 : 28, data)]);
}

/** The answer to a PTR question. */
export function encodeNameAnswer(query: DnsQuery, name: string): Buffer {
  const labels = name
    .split('.')
    .map((label) => Buffer.from(`${String.fromCharCode(label.length)}${label}`, 'latin1'));
  return encode(query, Rcode.noError, [record(12, Buffer.concat([...labels, Buffer.of(0)]))]);
}

/** The address that a name below in-addr.arpa or ip6.arpa stands for (RFC 1035, 3.5; RFC 3596, 2.5), in canonical form. */
export function reverseAddress(name: string): string | undefined {
  const ipv4 = /^((?:[0-9]{1,3}\.){4})in-addr\.arpa$/.exec(name);
  if (ipv4) return canonicalAddress((ipv4[1] ?? '').split('.').filter(Boolean).reverse().join('.'));
  const ipv6 = /^((?:[0-9a-f]\.){32})ip6\.arpa$/.exec(name);
  if (!ipv6) return undefined;
  const digits = (ipv6[1] ?? '').replaceAll('.', '').split('').reverse().join('');
  return canonicalAddress((digits.match(/.{4}/g) ?? []).join(':'));
}

export function isReverseName(name: string): boolean {
  return /(?:^|\.)(?:in-addr|ip6)\.arpa$/.test(name);
}

function encode(query: EncodableQuery, rcode: Rcode, answers: readonly Buffer[]): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16BE(query.id, 0);
  // QR, RA, and RD as it came.
  header.writeUInt16BE(0x8080 | (query.recursionDesired ? 0x0100 : 0) | (rcode & 0x0f), 2);
  header.writeUInt16BE(query.question.length > 0 ? 1 : 0, 4);
  header.writeUInt16BE(answers.length, 6);
  header.writeUInt16BE(query.edns ? 1 : 0, 10);
  const opt = Buffer.alloc(query.edns ? OPT_FIXED_BYTES : 0);
  if (query.edns) {
    opt.writeUInt16BE(TYPE_OPT, 1);
    opt.writeUInt16BE(EDNS_PAYLOAD_BYTES, 3);
    opt[5] = rcode >> 4;
  }
  return Buffer.concat([header, query.question, ...answers, opt]);
}

/** One record of the name in the question, to which its compressed name points. */
function record(type: number, data: Buffer): Buffer {
  const fixed = Buffer.alloc(12);
  fixed.writeUInt16BE(0xc000 | HEADER_BYTES, 0);
  fixed.writeUInt16BE(type, 2);
  fixed.writeUInt16BE(CLASS_IN, 4);
  fixed.writeUInt32BE(TTL_SECONDS, 6);
  fixed.writeUInt16BE(data.length, 10);
  return Buffer.concat([fixed, data]);
}

function ipv6Bytes(address: string): Buffer {
  const [before = [], after = []] = address
    .split('::')
    .map((half) => (half === '' ? [] : half.split(':').map((group) => Number.parseInt(group, 16))));
  const bytes = Buffer.alloc(16);
  for (const [index, group] of before.entries()) bytes.writeUInt16BE(group, index * 2);
  for (const [index, group] of after.entries()) bytes.writeUInt16BE(group, 16 - (after.length - index) * 2);
  return bytes;
}
