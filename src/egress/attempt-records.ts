/**
 * Records of a `POST /v1/events`: things that the guest tried, and that have no way out. Guest-controlled claims, of fixed size:
 *
 *     offset 0   u8      kind: Attempt of src/protocol/guest-link.ts
 *     offset 1   u8      address family as Linux numbers them; other than 2 (IPv4) and 10 (IPv6): there is no address
 *     offset 2   u16     port, 0: none
 *     offset 4   16      address; one of IPv4 in the first four bytes, the rest zero
 *     offset 20  u32     process, u32 user, 16 bytes command: not passed on, as only the guest vouches for them
 *     offset 44  u32     attempts that were not told
 */
import { canonicalAddress } from '../policy/address.ts';
import { ATTEMPT_BYTES, Attempt } from '../protocol/guest-link.ts';
import type { OtherAttempt } from './control.ts';

const FAMILY_IPV4 = 2;
const FAMILY_IPV6 = 10;

const KINDS: Readonly<Record<number, OtherAttempt['what']>> = {
  [Attempt.udp]: 'udp',
  [Attempt.rawSocket]: 'raw-socket',
  [Attempt.packetSocket]: 'packet-socket',
  [Attempt.otherSocket]: 'other-family',
};

/** The attempts that `body` tells; null if it is no sequence of such records. */
export function parseAttempts(body: Buffer): OtherAttempt[] | null {
  if (body.length === 0 || body.length % ATTEMPT_BYTES !== 0) return null;
  const attempts: OtherAttempt[] = [];
  for (let at = 0; at < body.length; at += ATTEMPT_BYTES) {
    const record = body.subarray(at, at + ATTEMPT_BYTES);
    // Those that are only counted have come before, with what they were.
    if (record[0] === Attempt.suppressed) continue;
    const what = KINDS[record[0] ?? 0];
    if (what === undefined) return null;
    const address = addressOf(record);
    const port = record.readUInt16BE(2);
    attempts.push({ what, ...(address !== undefined && { address }), ...(port !== 0 && { port }) });
  }
  return attempts;
}

function addressOf(record: Buffer): string | undefined {
  if (record[1] === FAMILY_IPV4) {
    const bytes = record.subarray(4, 8);
    return bytes.every((byte) => byte === 0) ? undefined : bytes.join('.');
  }
  if (record[1] !== FAMILY_IPV6) return undefined;
  const bytes = record.subarray(4, 20);
  if (bytes.every((byte) => byte === 0)) return undefined;
  return canonicalAddress(bytes.toString('hex').replace(/....(?!$)/g, '$&:'));
}
