/*
 * How a record is made: what all programs that do so have in common. Nothing here waits for long and nothing is dropped quietly:
 * a queue that fills wakes the helper, which stops the job; who gets to its end all the same is killed; and what is lost then
 * is counted.
 */
#ifndef CT_RECORD_BPF_H
#define CT_RECORD_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "audit.h"
#include "kernel.h"

#define SIGKILL 9
#define EPERM 1
#define EEXIST 17
#define TS_COMPAT 2 /* arch/x86/include/asm/thread_info.h: this call is of the 32-bit ABI. */
#define FMODE_WRITE 2
#define OPENED_TO_EXECUTE 0x20 /* __FMODE_EXEC, of f_flags: no user of open(2) can say it. */
#define FMODE_CREATED 0x100000
#define S_IFMT 0170000
#define S_IFREG 0100000
#define O_CREAT 0100
#define O_TRUNC 01000

#define MAX_PATH 1024
#define MAX_ARGS 4096
/* Directories and mounts above a file. */
#define MAX_DEPTH 64

const volatile struct audit_constants constants SEC(".rodata.constants") = { 0 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* The number of CPUs, set before loading. */
	__type(key, __u32);
	__type(value, struct audit_ring);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct audit_reader);
} reader SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct audit_tally);
} tally SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, AUDIT_EVENTS_BYTES);
} events SEC(".maps");

/* Only wakes the helper. Full: it has been woken already. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} doorbell SEC(".maps");

/* A file is told once for each process and what it does; the end of a process once. */
#define TOLD_EXIT 255
struct told_key {
	__u64 started_ns;
	__u64 inode;
	__u32 device;
	__u32 generation; /* Numbers of inodes come again. */
	__u64 what;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct told_key);
	__type(value, __u8);
} told SEC(".maps");

static __always_inline int in_job(void)
{
	return bpf_get_current_cgroup_id() == constants.job_cgroup;
}

static __always_inline void ring_doorbell(void)
{
	__u64 *ring = bpf_ringbuf_reserve(&doorbell, sizeof *ring, 0);
	if (ring)
		bpf_ringbuf_submit(ring, BPF_RB_FORCE_WAKEUP);
}

static __always_inline void wake_sleeper(struct audit_reader *state)
{
	if (state->armed) {
		state->armed = 0;
		ring_doorbell();
	}
}

static long is_over(__u32 index, __u64 *end_ns)
{
	return bpf_ktime_get_ns() >= *end_ns;
}

static __always_inline void wait(__u64 ns)
{
	__u64 end_ns = bpf_ktime_get_ns() + ns;
	/* Each turn takes some nanoseconds: the time ends it first. */
	bpf_loop(1 << 20, is_over, &end_ns, 0);
}

static __always_inline void lose_event(void)
{
	const __u32 first = 0;
	struct audit_tally *counts = bpf_map_lookup_elem(&tally, &first);
	if (counts)
		__sync_fetch_and_add(&counts->lost, 1);
}

/* Helpers that have to be told sizes as constants. */
#define BEGIN(size)                                                                                                    \
	({                                                                                                             \
		__u64 _held = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);                                           \
		if (_held >= AUDIT_EVENTS_BYTES / 4)                                                                   \
			ring_doorbell();                                                                               \
		if (_held >= AUDIT_EVENTS_SLOW_BYTES)                                                                  \
			wait((size) * (__u64)AUDIT_EVENTS_SLOW_NS_PER_BYTE);                                           \
		if (_held >= AUDIT_EVENTS_KILL_BYTES)                                                                  \
			bpf_send_signal(SIGKILL);                                                                      \
		void *_record = bpf_ringbuf_reserve(&events, size, 0);                                                 \
		if (!_record)                                                                                          \
			lose_event();                                                                                  \
		_record;                                                                                               \
	})

static __always_inline void fill(struct process_record *record, __u8 kind, __u16 bytes)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 ids = bpf_get_current_uid_gid();

	record->bytes = bytes;
	record->kind = kind;
	record->flags = 0;
	record->process = task->tgid;
	record->thread = task->pid;
	record->parent = task->real_parent->tgid;
	record->time_ns = bpf_ktime_get_ns();
	record->started_ns = task->group_leader->start_time;
	record->uid = (__u32)ids;
	record->gid = ids >> 32;
}

static __always_inline void submit(void *record)
{
	const __u32 first = 0;
	struct audit_tally *counts = bpf_map_lookup_elem(&tally, &first);
	struct audit_reader *state;

	if (counts)
		__sync_fetch_and_add(&counts->made, 1);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	state = bpf_map_lookup_elem(&reader, &first);
	if (state)
		wake_sleeper(state);
}

/* Space for a path and more: the helper takes as much of a record as it says it has. */
#define EXEC_SPACE (sizeof(struct exec_record) + MAX_PATH + MAX_ARGS + MAX_PATH)
/* Names are copied to where there may be less room than the longest takes. */
#define FILE_SPACE (sizeof(struct file_record) + MAX_PATH + 256)

static __always_inline int is_job(struct task_struct *task)
{
	return task->cgroups->dfl_cgrp->kn->id == constants.job_cgroup;
}

/* A path that is written from its end. */
struct walk {
	struct dentry *entry;
	struct mount *mount;
	char *text;
	__u32 start;
	__u32 done;
};

static long step_up(__u32 index, struct walk *walk)
{
	struct dentry *entry = walk->entry, *parent = BPF_CORE_READ(entry, d_parent);
	struct mount *mount = walk->mount;
	__u32 start = walk->start, length;

	if (entry == BPF_CORE_READ(mount, mnt.mnt_root) || entry == parent) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);
		if (above == mount) {
			walk->done = 1;
			return 1;
		}
		walk->entry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = above;
		return 0;
	}
	length = BPF_CORE_READ(entry, d_name.len) & 255;
	if (start < length + 1 || start > MAX_PATH)
		return 1;
	start -= length;
	bpf_probe_read_kernel(walk->text + (start & (MAX_PATH - 1)), length, BPF_CORE_READ(entry, d_name.name));
	start--;
	walk->text[start & (MAX_PATH - 1)] = '/';
	walk->start = start;
	walk->entry = parent;
	return 0;
}

/*
 * What a callback of bpf_loop changes has to begin with something that the verifier does not know: it looks at the first turn
 * only (fixed in Linux 6.7), and takes out what that cannot reach.
 */
#define BEGIN_UNKNOWN(variable, initial) bpf_probe_read_kernel(&(variable), sizeof(variable), &(initial))

static const __u32 end_of_path = MAX_PATH;

/*
 * As bpf_d_path, where that may not be called: of a hook whose subject need not exist. Writes at most MAX_PATH bytes, and needs
 * 256 more. Returns how many they are.
 */
static __always_inline __u32 write_path(struct path *path, struct dentry *entry, char *text, __u8 *flags)
{
	struct walk walk = {
		.entry = entry,
		.mount = (void *)path->mnt - bpf_core_field_offset(struct mount, mnt),
		.text = text,
	};
	__u32 start, length;

	BEGIN_UNKNOWN(walk.start, end_of_path);
	bpf_loop(MAX_DEPTH, step_up, &walk, 0);
	if (!walk.done)
		*flags |= CT_CUT;
	start = walk.start;
	if (start > MAX_PATH)
		start = MAX_PATH;
	length = MAX_PATH - start;
	bpf_probe_read_kernel(text, length, text + start);
	return length;
}

#endif
