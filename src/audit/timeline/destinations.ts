/** Names in place of the synthetic addresses of a run. */
import { RESOLVER_ADDRESS, SyntheticAddresses } from '../../egress/synthetic-addresses.ts';
import type { ConnectEvent } from '../records.ts';

/** The name that an address stands for; undefined for real addresses, and for those that stand for nothing. */
export type NameOf = (address: string) => string | undefined;

/**
 * `allowed`: names whose address the run was told, in the order of its decision log. Addresses are given out in that order, so
 * they need not be recorded. Of names that were asked for at the same moment the order may be the other one.
 */
export function namesInOrder(allowed: Iterable<string>): NameOf {
  const addresses = new SyntheticAddresses();
  for (const name of allowed) addresses.assign(name);
  return (address) => addresses.nameOf(address);
}

/** Addresses of the VM itself. What its name service is asked leaves it as a question of its own (src/egress/name-service.ts). */
export function isOfVm(address: string): boolean {
  return (
    address === '::1' ||
    address.startsWith('127.') ||
    address === '0.0.0.0' ||
    address === '::' ||
    address === RESOLVER_ADDRESS
  );
}

const EINPROGRESS = -115;

/** Connections that were begun and not waited for count: what became of them is not known. */
export function wasRefused({ result }: ConnectEvent): boolean {
  return result < 0 && result !== EINPROGRESS;
}
