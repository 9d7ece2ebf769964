/** Every limit on foreign bytes, in one place. Each says who controls the bytes and why the number. */

/** Payload of one record on any stream; both sides allocate at most this per record. Peer-controlled. */
export const MAX_RECORD_BYTES = 65_536;

/** One JSON request or event between CLI, host daemon and link process; a job spec with many steps fits. */
export const MAX_JSON_BYTES = 4 * 1024 * 1024;

/** Job files: user-controlled, parsed whole in memory; a hand-written one is far smaller. */
export const MAX_JOB_FILE_BYTES = 1024 * 1024;

/** A step's script, written into guest memory in one piece. */
export const MAX_SCRIPT_BYTES = 512 * 1024;

/** Value of one secret: fits one record with its name, and an `env` record of the guest link. User-controlled. */
export const MAX_SECRET_BYTES = 48 * 1024;

/** All secrets of a job: masking takes up to 1.3 KiB of the link process's memory for each byte (docs/adr/0008). */
export const MAX_JOB_SECRETS_BYTES = 64 * 1024;

/** Secrets of a job. */
export const MAX_JOB_SECRETS = 100;

/** Name of a secret. */
export const MAX_SECRET_NAME_BYTES = 128;

/** A shorter value would hide ordinary output wherever it occurs in it. */
export const MIN_SECRET_CHARACTERS = 4;

/** Steps of a job; the wire names a step by a 16-bit index. */
export const MAX_STEPS = 1000;

/** PATH_MAX of Linux, without the NUL: names and link targets in a tree stream. */
export const MAX_PATH_BYTES = 4095;

/** Serial console and VMM stderr kept for error messages. Guest-controlled, so bounded and never parsed. */
export const CONSOLE_TAIL_BYTES = 16_384;

/** What the guest may send before the nonce echo: at most a stale `ready` line and noise. */
export const MAX_PRE_SESSION_BYTES = 65_536;

/** Digests of signed manifests that one run may use: they lie in the guest's kernel. */
export const MAX_SIGNED_DIGESTS = 4096;
/** Interpreters whose input is judged, and one of them with its endings and options. */
export const MAX_INTERPRETERS = 32;
export const MAX_INTERPRETER_BYTES = 512;
/** Its endings, and its options; each of them. What is compared in the guest's kernel has to have a bound. */
export const MAX_INTERPRETER_NAMES = 16;
export const MAX_INTERPRETER_NAME_BYTES = 16;
