/**
 * The guest link: what the host and the guest agent say to each other. docs/guest-link.md has the whole
 * protocol in prose; guest-agent/protocol.h holds the same numbers, and a test compares the two.
 */

/** Written once by the guest agent when it is ready to be snapshotted or used. */
export const READY_LINE = 'ct-ready 1\n';

/** Starts a session: the host sends magic + nonce, the guest agent echoes both, then HTTP/2 begins. */
export const HELLO_MAGIC = 'CTHELLO1';
export const HELLO_NONCE_BYTES = 32;

export const GuestPath = {
  identity: '/v1/identity',
  exec: '/v1/exec',
  stats: '/v1/stats',
  audit: '/v1/audit',
  code: '/v1/code',
  phase: '/v1/phase',
  shutdown: '/v1/shutdown',
} as const;

/** Records of a `PUT /v1/identity` request body. */
export const IdentityRecord = {
  /** 64 to 1024 fresh random bytes. */
  entropy: 0x01,
  /** u64 BE: wall clock, nanoseconds since 1970. */
  time: 0x02,
  /** 1 to 63 bytes of [a-z0-9-]. */
  hostname: 0x03,
  /** dm-crypt cipher of the workspace volume, `<key bytes>:<cipher>`, or `none`. */
  volume: 0x04,
} as const;

/**
 * Records of a `PUT /v1/code` request body: which code may run (docs/adr/0017-signed-code.md). At most once, before anything of the
 * job; without it nothing is judged.
 */
export const CodeRecord = {
  /** u8: see CodeMode. */
  mode: 0x40,
  /** u8 flags: see CodeTrust. */
  trust: 0x41,
  /** 32-byte SHA-256 digests of signed code, one after another; MAX_SIGNED_DIGESTS of them in all. */
  digests: 0x42,
  /**
   * u8 flags (InterpreterFlag), then strings that each end with NUL: the path of the program, then endings of names (`.py`) and
   * options that are followed by code (`-c`), in any order. MAX_INTERPRETERS of them; one that is not in the image is left out.
   */
  interpreter: 0x43,
} as const;

export const CodeMode = { audit: 1, enforce: 2, terminate: 3 } as const;
/** What is trusted beside the image and what is signed. */
export const CodeTrust = { source: 1, built: 2 } as const;
/**
 * `inlineForbidden`: it may not be started to read code from an option or its standard input. `everyArgument`: each file that its
 * command line names is code, as for a shell; else only the first one that is no option.
 */
export const InterpreterFlag = { inlineForbidden: 1, everyArgument: 2 } as const;

/** Body of `PUT /v1/phase`: one byte. Every process of the job is dead when it is answered. */
export const Phase = { stage: 1, fetch: 2, build: 3 } as const;

/** Records of a `POST /v1/exec` request body, in this order: setup, start, then input. */
export const ExecInput = {
  arg: 0x10,
  env: 0x11,
  cwd: 0x12,
  /** u32 BE uid, u32 BE gid. */
  user: 0x13,
  /** u8 flags: see ExecFlag; with `terminal` u16 BE rows and u16 BE columns follow. */
  start: 0x14,
  /** Name of a built-in (`tree-in`, `tree-out`) to run instead of a program; args follow as usual. */
  builtin: 0x15,
  /** Name, [a-z0-9.-]{1,64}, of a file to create in SCRIPT_DIRECTORY before the program starts. */
  scriptName: 0x16,
  /** Appended to that file. */
  scriptData: 0x17,
  /**
   * Name, [A-Za-z0-9_]{1,128}, of a file to create in SECRET_DIRECTORY for the user given before; it is there until
   * the process has ended.
   */
  secretName: 0x18,
  /** What is in that file: one record. */
  secretData: 0x19,
  /** Bytes for stdin; an empty payload closes it. */
  stdin: 0x20,
  /** u8 signal number, sent to the process group. */
  signal: 0x21,
  /** Kills every process of the job, also those that left the process group. */
  killAll: 0x22,
  /** u16 BE rows, u16 BE columns: the new size of the terminal. */
  resize: 0x23,
} as const;

/** `terminal`: stdin, stdout and stderr are one pseudo-terminal, which the process is in control of. */
export const ExecFlag = { stdin: 1, terminal: 2 } as const;

/** Records of the response to `POST /v1/exec`. */
export const ExecOutput = {
  /** u32 BE pid in the guest. */
  started: 0x30,
  stdout: 0x31,
  stderr: 0x32,
  /** u8 kind (0 exited, 1 signalled), u8 code or signal, u8 flags: see ExitFlag. Last record. */
  exit: 0x33,
  /** u32 BE errno, then text: the program could not be started. Last record. */
  failed: 0x34,
} as const;

export const ExitFlag = { oomKilled: 1 } as const;

/** Root-owned directory on tmpfs that holds the step scripts; a job can read but not change them. */
export const SCRIPT_DIRECTORY = '/run/ct/steps';
/** Directory on tmpfs that only the job's user can enter; holds the secrets that a step is given as files. */
/**
 * A user namespace of the job's, if its image asks for one: 0 is its user, 1 and on are these ids, as many as Debian gives to
 * its first account.
 */
export const SUBORDINATE_USERS_PATH = '/run/ct/users';
export const FIRST_SUBORDINATE_ID = 100_000;
export const SUBORDINATE_IDS = 65_536;
export const SECRET_DIRECTORY = '/run/ct/secrets';
/** Tiny static program that writes one byte and exits: `ct bench` times it. */
export const PROBE_PATH = '/run/ct/bin/probe';
export const WORKSPACE_DIRECTORY = '/workspace';

/** Name of the control port on virtio-serial. */
export const CONTROL_PORT_NAME = 'ct.control';
/** Name of the egress port: there the guest is the HTTP/2 client. */
export const EGRESS_PORT_NAME = 'ct.egress';

/** What the guest asks on the egress port, beside `CONNECT address:port`. */
export const EgressPath = {
  /** `POST`: one DNS message each way. */
  dns: '/v1/dns',
  /** `POST`: attempt records; answered 200 or 204. */
  events: '/v1/events',
} as const;

/** First byte of an attempt record: something without a way out of the VM was tried. docs/guest-link.md has the layout. */
export const Attempt = {
  /** A datagram to anybody but the resolver. */
  udp: 1,
  rawSocket: 2,
  packetSocket: 3,
  otherSocket: 4,
  /** Only says how many attempts have not been told, because there were too many. */
  suppressed: 5,
} as const;

export const ATTEMPT_BYTES = 48;
/** Guest-controlled; what RFC 6891 suggests for EDNS. */
export const MAX_DNS_MESSAGE_BYTES = 4096;
