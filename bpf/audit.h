/*
 * What the guest records of a job, the same as src/protocol/audit.ts, which has the meaning in prose; a test compares the
 * two. And what the BPF programs and the audit helper share. No includes: the includer brings __u8 to __u64 and __s64.
 */
#ifndef CT_AUDIT_H
#define CT_AUDIT_H

#define CT_AUDIT_PORT_NAME "ct.audit"
#define CT_AUDIT_MAGIC 0x31415443
#define CT_AUDIT_VERSION 1
#define CT_AUDIT_FRAME_BYTES 32
#define CT_SYSCALL_RECORD_BYTES 64
#define CT_PROCESS_RECORD_BYTES 40
#define CT_MAX_AUDIT_PAYLOAD_BYTES 262144
#define CT_MAX_PROCESS_RECORD_BYTES 8192
#define CT_NO_CPU 0xffff

#define CT_AUDIT_FRAME_SYSCALLS 1
#define CT_AUDIT_FRAME_PROCESSES 2
#define CT_AUDIT_FRAME_HEARTBEAT 3

#define CT_SYSCALL_FLAG_COMPAT 1
#define CT_SYSCALL_FLAG_AT_ENTRY 2
#define CT_SYSCALL_FLAG_SIXTH 4

#define CT_PROCESS_RECORD_FORK 1
#define CT_PROCESS_RECORD_EXEC 2
#define CT_PROCESS_RECORD_EXIT 3
#define CT_PROCESS_RECORD_CONNECT 4
#define CT_PROCESS_RECORD_DENIED 5
#define CT_PROCESS_RECORD_FILE 6

#define CT_DENIED_WHAT_EXEC 1
#define CT_DENIED_WHAT_LIBRARY 2
#define CT_DENIED_WHAT_MPROTECT 3
#define CT_DENIED_WHAT_SCRIPT 4
#define CT_DENIED_WHAT_SOCKET 5
#define CT_DENIED_WHAT_PTRACE 6
#define CT_DENIED_WHAT_BPF 7
#define CT_DENIED_WHAT_SYSCTL 8
#define CT_DENIED_WHAT_IO_URING 9
#define CT_DENIED_WHAT_INLINE 10

#define CT_FILE_WHAT_READ 1
#define CT_FILE_WHAT_WRITE 2
#define CT_FILE_WHAT_UNLINK 3
#define CT_FILE_WHAT_RENAME 4
#define CT_FILE_WHAT_SETUID 5

struct audit_frame {
	__u32 magic;
	__u8 type;
	__u8 version;
	__u16 cpu;
	__u64 first;
	__u32 records;
	__u32 bytes;
	__u64 lost;
};
_Static_assert(sizeof(struct audit_frame) == CT_AUDIT_FRAME_BYTES, "src/protocol/audit.ts");

struct syscall_record {
	__u64 time_ns;
	__u32 thread;
	__u16 number;
	__u16 flags;
	__s64 result;
	__u64 arguments[5];
};
_Static_assert(sizeof(struct syscall_record) == CT_SYSCALL_RECORD_BYTES, "src/protocol/audit.ts");

struct process_record {
	__u16 bytes;
	__u8 kind;
	__u8 flags;
	__u32 process;
	__u32 thread;
	__u32 parent;
	__u64 time_ns;
	__u64 started_ns;
	__u32 uid;
	__u32 gid;
};
_Static_assert(sizeof(struct process_record) == CT_PROCESS_RECORD_BYTES, "src/protocol/audit.ts");

#define CT_CUT 1
#define CT_NOT_DENIED 2

/* What follows in each kind; strings come behind. */
struct fork_record {
	struct process_record head;
	__u32 child;
	__u32 zero;
	__u64 child_started_ns;
};
struct exec_record {
	struct process_record head;
	__u16 binary_bytes;
	__u16 args_bytes;
	__u16 cwd_bytes;
	__u16 zero;
	__u32 device;
	__u32 zero_too;
	__u64 inode;
	__u8 digest[32];
};
struct exit_record {
	struct process_record head;
	__u32 status;
	__u32 unused; /* Not sent. */
};
struct connect_record {
	struct process_record head;
	__u16 family;
	__u16 port;
	__u8 protocol;
	__u8 zeros[3];
	__u8 address[16];
	__s32 result;
	__u32 unused; /* Not sent. */
};
struct denied_record {
	struct process_record head;
	__u8 what;
	__u8 zero;
	__u16 path_bytes;
	__u32 device;
	__u8 digest[32];
};
struct file_record {
	struct process_record head;
	__u8 what;
	__u8 zero;
	__u16 path_bytes;
	__u32 detail;
};
#define EXIT_RECORD_BYTES (sizeof(struct exit_record) - 4)
#define CONNECT_RECORD_BYTES (sizeof(struct connect_record) - 4)
_Static_assert(sizeof(struct fork_record) == 56 && sizeof(struct exec_record) == 96 && EXIT_RECORD_BYTES == 44 &&
		       CONNECT_RECORD_BYTES == 68 && sizeof(struct denied_record) == 80 &&
		       sizeof(struct file_record) == 48,
	       "src/protocol/audit.ts");

/* --- Between the BPF programs and the helper --- */

/* What the host accepts. */
#define AUDIT_MAX_CPUS 256
/* A power of two; 1 MiB a CPU. */
#define AUDIT_SLOTS 16384
/* The helper is woken when so many are waiting, and again after every so many more. */
#define AUDIT_DOORBELL_SLOTS (AUDIT_SLOTS / 4)
#define AUDIT_DOORBELL_EVERY 1024
/* So many waiting, and the job is frozen until there are fewer than a quarter. */
#define AUDIT_FREEZE_SLOTS (AUDIT_SLOTS / 2)
/*
 * From here on each call waits so long before it returns. The host may not let the helper's CPU run for tens of
 * milliseconds, in which a thread on another CPU would fill any ring.
 */
#define AUDIT_SLOW_SLOTS (AUDIT_SLOTS / 8 * 5)
#define AUDIT_SLOW_NS 100000
/* The last ones: whoever gets there is killed. */
#define AUDIT_KILL_SLOTS (AUDIT_SLOTS - 1024)
/* Of process records. The last part of it is for those that are killed for it. */
#define AUDIT_EVENTS_BYTES (1024 * 1024)
#define AUDIT_EVENTS_SLOW_BYTES (AUDIT_EVENTS_BYTES / 8 * 5)
#define AUDIT_EVENTS_SLOW_NS_PER_BYTE 1000
#define AUDIT_EVENTS_KILL_BYTES (AUDIT_EVENTS_BYTES - 64 * 1024)

/* One CPU's, written by its system calls alone. */
struct audit_ring {
	__u64 head; /* Records made since boot: the next one goes to slot head % AUDIT_SLOTS. */
	__u64 lost;
	__u64 rung; /* `head` when the doorbell was rung last, about. */
	__u64 css_set; /* The last one that was found to be the job's. */
	__u64 unused[508]; /* The rest of a page. */
	struct syscall_record slots[AUDIT_SLOTS];
};

/* Written by the helper. */
struct audit_reader {
	__u32 armed; /* It sleeps: the first record wakes it, and clears this. */
	__u32 unused[15];
	struct {
		__u64 tail; /* Records taken. */
		__u64 unused[7];
	} cpus[AUDIT_MAX_CPUS];
};

/* Set before loading. */
struct audit_constants {
	__u64 job_cgroup;
	__u32 root_device; /* Of the image: major << 20 | minor. */
	__u32 unused;
};

/* Of process records. */
struct audit_tally {
	__u64 lost;
	__u64 made;
};

#endif
