/** What a job asks of the network, as it travels from the job file to the host daemon. Only a wish: policy decides. */

export const NETWORK_MODES = ['audit', 'enforce', 'terminate'] as const;
/** `audit` records, `enforce` refuses, `terminate` refuses and ends the run. In order of strictness. */
export type NetworkMode = (typeof NETWORK_MODES)[number];

export interface NetworkRequest {
  /** Presets (`npm`) and destinations (`https://api.example.com`), as written: src/policy/destination.ts. */
  readonly allow: readonly string[];
  /** At least this strict; policy sets the floor. */
  readonly mode?: NetworkMode;
}

/** Where a job comes from. `local`: a person at this machine; the rest of the fields are then that person's claims. */
export interface JobOrigin {
  /** How far its author is trusted: policy tells pull requests of strangers from the team's own pushes. */
  readonly trust: 'local' | 'trusted' | 'untrusted';
  /** `owner/name`, lower case, from the remote; absent if unknown. */
  readonly repository?: string;
  /** Full ref: `refs/heads/main`. */
  readonly ref?: string;
  /** Hex commit. */
  readonly commit?: string;
  readonly actor?: string;
}

export const MAX_NETWORK_ENTRIES = 1000;
export const MAX_NETWORK_ENTRY_BYTES = 300;
