/** The resolver of one VM: answers the guest's questions with synthetic addresses, for names that the control allows. */
import type { EgressControl, Verdict } from './control.ts';
import {
  type DnsQuery,
  encodeAddressAnswer,
  encodeEmptyAnswer,
  encodeNameAnswer,
  isReverseName,
  parseDnsQuery,
  Rcode,
  reverseAddress,
} from './dns-message.ts';
import { SyntheticAddresses } from './synthetic-addresses.ts';

/** Questions that wait for the control, each once; a resolver asks two at a time. */
const MAX_PENDING = 64;

export class NameService {
  readonly addresses = new SyntheticAddresses();
  readonly #dns: EgressControl['dns'];
  /** `A name`, `AAAA name`: allowed for the whole run; a connection to it is decided anew. */
  readonly #allowed = new Set<string>();
  readonly #pending = new Map<string, Promise<Verdict>>();

  constructor(control: Pick<EgressControl, 'dns'>) {
    this.#dns = (name, type) => control.dns(name, type);
  }

  /** The answer to one message of the guest; null: it is none that has an answer. Never rejects. */
  async answer(message: Buffer): Promise<Buffer | null> {
    const parsed = parseDnsQuery(message);
    if (parsed.kind === 'dropped') return null;
    if (parsed.kind === 'error') return parsed.answer;
    const { query } = parsed;
    const { name, type, refusal } = query;
    const isReverse = name !== null && isReverseName(name);
    if (name === null || refusal !== undefined) {
      // Not for the answer, but for the record, and because of names that are banned.
      if (name !== null && !isReverse) await this.#ask(`${type} ${name}`, name, type).catch(() => {});
      return encodeEmptyAnswer(query, refusal ?? Rcode.nxDomain);
    }
    return isReverse ? this.#reverse(query, name) : this.#forward(query, name);
  }

  async #forward(query: DnsQuery, name: string): Promise<Buffer> {
    const { type } = query;
    const isAddress = type === 'A' || type === 'AAAA';
    const question = `${type} ${name}`;
    if (!this.#allowed.has(question)) {
      let verdict: Verdict;
      try {
        verdict = await this.#ask(question, name, type);
      } catch {
        return encodeEmptyAnswer(query, Rcode.servFail);
      }
      if (!verdict.allowed) return encodeEmptyAnswer(query, Rcode.nxDomain);
    }
    if (!isAddress) return encodeEmptyAnswer(query, Rcode.noError);
    const pair = this.addresses.assign(name);
    if (!pair) return encodeEmptyAnswer(query, Rcode.servFail);
    this.#allowed.add(question);
    return encodeAddressAnswer(query, type === 'A' ? pair.ipv4 : pair.ipv6);
  }

  /** Rejects if there is no answer, or too many are waited for. */
  #ask(question: string, name: string, type: string): Promise<Verdict> {
    const pending = this.#pending.get(question);
    if (pending) return pending;
    if (this.#pending.size >= MAX_PENDING) return Promise.reject(new Error('too many questions at once'));
    const asked = this.#dns(name, type).finally(() => this.#pending.delete(question));
    this.#pending.set(question, asked);
    return asked;
  }

  /** Nothing but what the guest was told itself. */
  #reverse(query: DnsQuery, name: string): Buffer {
    const address = reverseAddress(name);
    const found = address === undefined ? undefined : this.addresses.nameOf(address);
    if (found === undefined) return encodeEmptyAnswer(query, Rcode.nxDomain);
    return query.type === 'PTR' ? encodeNameAnswer(query, found) : encodeEmptyAnswer(query, Rcode.noError);
  }
}
