/**
 * Destinations: what rules name. One grammar for job files and policy data:
 *
 *     npm                        a preset: resolved from the configuration of the machine's own clients
 *     example.com                TLS on 443, HTTP on 80
 *     *.example.com              any name below example.com, not itself
 *     https://example.com:8443   TLS (also tls://)
 *     http://example.com         plain HTTP, every request for that host
 *     ssh://git.example.com      SSH
 *     tcp://db.example.com:5432  anything: what is said is not looked at
 *     tcp://192.0.2.7:5432       a literal address; [2001:db8::7] for IPv6
 *     *                          every name (policy data only)
 */

export const DESTINATION_PROTOCOLS = ['tls', 'http', 'ssh', 'tcp'] as const;
/** What has to be spoken; `tcp`: anything. */
export type DestinationProtocol = (typeof DESTINATION_PROTOCOLS)[number];

/** One rule, lowered: a name (or pattern, or address), one port, one protocol. */
export interface Destination {
  /** What people wrote: shown when it decides. For a preset, its name. */
  readonly rule: string;
  /** Lower-case A-labels without a final dot; `*.` + name; `*`; or an address as RFC 5952 writes it, without brackets. */
  readonly host: string;
  /** 1 to 65535; 0: every port (only with host `*`). */
  readonly port: number;
  readonly protocol: DestinationProtocol;
  /** `any`: addresses that are not public will do, too: those of the operator's own mirrors. */
  readonly addresses: 'public' | 'any';
}
