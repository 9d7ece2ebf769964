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

/**
 * What a job needs to know of the operator's clients, so that its own find registries and mirrors and trust them: from the
 * daemon to the link process, which applies it (src/job/guest-settings.ts). Never a credential.
 */
export interface GuestNetworkSettings {
  /** Weaker than every variable that the job sets itself. */
  readonly env: Readonly<Record<string, string>>;
  /** Settings that clients take from a file only: content per path relative to the home directory of the job's user. */
  readonly homeFiles?: Readonly<Record<string, string>>;
  /** Certificates only, at most MAX_SCRIPT_BYTES; absent: the image's own authorities do. */
  readonly authoritiesPem?: string;
}

/** Entries of one `network:` block; user-controlled. */
export const MAX_NETWORK_ENTRIES = 1000;
/** A name has at most 253 characters; the rest is scheme and port. */
export const MAX_NETWORK_ENTRY_BYTES = 300;
