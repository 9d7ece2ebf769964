/**
 * What the guest sends on `ct.audit`, one direction, little endian: frames of records (docs/adr/0014-audit.md has the reasons).
 * The layout has two homes that a test compares: this file and bpf/audit.h.
 *
 * Frame, 32 bytes, then `bytes` of payload:
 *
 *     0   u32  magic
 *     4   u8   type (AuditFrame)
 *     5   u8   version
 *     6   u16  cpu; 0xffff with types that have none
 *     8   u64  number of the first record; a cpu's, or the processes', begin with 0
 *     16  u32  records
 *     20  u32  bytes of payload
 *     24  u64  records of this cpu that were lost; anything but 0 ends the run
 *
 * A heartbeat has no records, and number 0.
 *
 * System call, 64 bytes:
 *
 *     0   u64  nanoseconds of the guest's monotonic clock
 *     8   u32  thread
 *     12  u16  number
 *     14  u16  flags (SyscallFlag)
 *     16  i64  result; 0 with `atEntry`
 *     24  u64  arguments 1 to 5
 *
 * A sixth argument, where it is not 0, is the first of a record of its own that follows in the same frame, with flag `sixth`
 * and otherwise the number, thread and flags of its call.
 *
 * Process record, 40 bytes and fields by kind; strings are bytes without NUL, `args` separated by NUL:
 *
 *     0   u16  bytes of the whole record
 *     2   u8   kind (ProcessRecord)
 *     3   u8   flags: 1 a string was cut, 2 it was not denied, only recorded (`denied`)
 *     4   u32  process, 8  u32  thread, 12  u32  parent process
 *     16  u64  nanoseconds of the monotonic clock
 *     24  u64  when the process was started: with its number it names it
 *     32  u32  uid, 36  u32  gid
 *     40  fork     u32 child, u32 0, u64 when it was started; of processes, not of threads
 *         exec     u16 bytes of binary, u16 of args, u16 of cwd, u16 0, u32 device, u32 0, u64 inode, 32 sha256 (zeros: not
 *                  computed), binary, args, cwd
 *         exit     u32 status as wait(2) gives it
 *         connect  u16 family, u16 port, u8 protocol, 3 zeros, 16 address (IPv4 in the first four), i32 result
 *         denied   u8 what (DeniedWhat), u8 0, u16 bytes of path, u32 device, 32 sha256, path
 *         file     u8 what (FileWhat), u8 0, u16 bytes of path, u32 open flags or mode, path
 */
/**
 * What policy says about the record of a run. `on`: it is kept, and a run whose record breaks off goes on with a warning;
 * `required`: there is no run without it.
 */
export const AUDIT_MODES = ['off', 'on', 'required'] as const;
export type AuditMode = (typeof AUDIT_MODES)[number];

export const AUDIT_PORT_NAME = 'ct.audit';
export const AUDIT_MAGIC = 0x31415443;
export const AUDIT_VERSION = 1;
export const AUDIT_FRAME_BYTES = 32;
export const SYSCALL_RECORD_BYTES = 64;
export const PROCESS_RECORD_BYTES = 40;
/** Payload of one frame; guest-controlled, checked before anything is kept. */
export const MAX_AUDIT_PAYLOAD_BYTES = 262_144;
/** One process record: binary, arguments and working directory are cut to fit. */
export const MAX_PROCESS_RECORD_BYTES = 8192;

export const AuditFrame = { syscalls: 1, processes: 2, heartbeat: 3 } as const;
export const NO_CPU = 0xffff;

export const SyscallFlag = { compat: 1, atEntry: 2, sixth: 4 } as const;

export const ProcessRecord = { fork: 1, exec: 2, exit: 3, connect: 4, denied: 5, file: 6 } as const;

export const DeniedWhat = {
  exec: 1,
  library: 2,
  mprotect: 3,
  script: 4,
  socket: 5,
  ptrace: 6,
  bpf: 7,
  sysctl: 8,
  ioUring: 9,
  inline: 10,
} as const;

export const FileWhat = { read: 1, write: 2, unlink: 3, rename: 4, setuid: 5 } as const;
