/*
 * The record of a job, made where a job cannot reach: in the guest's kernel (docs/adr/0014-audit.md). System calls go into a
 * ring per CPU, in memory that the audit helper maps; what happens to processes, files and connections into a ring of all
 * CPUs. Nothing here waits and nothing is dropped quietly: a ring that fills wakes the helper, which stops the job; who gets
 * to its end all the same is killed; and what is lost then is counted.
 *
 * The last part keeps the record from being switched off.
 */
#include "record.bpf.h"
#include "interpreters.bpf.h"

#define S_SETIDS 06000
#define PTRACE_MODE_ATTACH 2
#define AF_INET 2
#define AF_INET6 10

/* --- System calls. Both programs run with preemption off: a CPU's ring has one writer. --- */

#define BIT(number) (1ULL << ((number) & 63))

/* Calls that take six arguments, by number: 64-bit, then 32-bit. Offsets of 64 bits count twice in the latter. */
static const __u64 six[2][8] = {
	{
		BIT(9) /* mmap */ | BIT(44) /* sendto */ | BIT(45) /* recvfrom */,
		0,
		0,
		BIT(202) /* futex */ | BIT(237) /* mbind */,
		BIT(270) /* pselect6 */ | BIT(275) /* splice */ | BIT(279) /* move_pages */ | BIT(281) /* epoll_pwait */ |
			BIT(310) /* process_vm_readv */ | BIT(311) /* process_vm_writev */,
		BIT(326) /* copy_file_range */ | BIT(327) /* preadv2 */ | BIT(328) /* pwritev2 */ |
			BIT(333) /* io_pgetevents */,
		BIT(426) /* io_uring_enter */ | BIT(441) /* epoll_pwait2 */,
		0,
	},
	{
		0,
		BIT(117) /* ipc */,
		0,
		BIT(192) /* mmap2 */ | BIT(240) /* futex */,
		BIT(272) /* fadvise64_64 */ | BIT(274) /* mbind */ | BIT(308) /* pselect6 */ | BIT(313) /* splice */ |
			BIT(314) /* sync_file_range */ | BIT(317) /* move_pages */ | BIT(319) /* epoll_pwait */,
		BIT(324) /* fallocate */ | BIT(339) /* fanotify_mark */ | BIT(347) /* process_vm_readv */ |
			BIT(348) /* process_vm_writev */ | BIT(369) /* sendto */ | BIT(371) /* recvfrom */ |
			BIT(377) /* copy_file_range */ | BIT(378) /* preadv2 */ | BIT(379) /* pwritev2 */,
		BIT(385) /* io_pgetevents */ | BIT(413) /* pselect6_time64 */ | BIT(416) /* io_pgetevents_time64 */ |
			BIT(422) /* futex_time64 */ | BIT(426) /* io_uring_enter */ | BIT(441) /* epoll_pwait2 */,
		0,
	},
};

/*
 * All of a job have one `css_set`, which is quicker to look at than what it says. One that is freed can only come back as
 * the job's: nothing else of the guest makes any after boot.
 */
static __always_inline int is_job_here(struct task_struct *task, struct audit_ring *ring)
{
	struct css_set *set = task->cgroups;

	if ((__u64)set == ring->css_set)
		return 1;
	if (set->dfl_cgrp->kn->id != constants.job_cgroup)
		return 0;
	ring->css_set = (__u64)set;
	return 1;
}

static __always_inline void record_call(struct task_struct *task, struct pt_regs *regs, __s64 result, __u16 flags)
{
	const __u32 first = 0;
	__u32 cpu = bpf_get_smp_processor_id();
	struct audit_ring *ring = bpf_map_lookup_elem(&rings, &cpu);
	struct audit_reader *state = bpf_map_lookup_elem(&reader, &first);
	struct syscall_record *record;
	__u64 number, head, used, sixth;

	if (!ring || !state || !is_job_here(task, ring))
		return;
	head = ring->head;
	used = head - *(volatile __u64 *)&state->cpus[cpu & (AUDIT_MAX_CPUS - 1)].tail;
	if (used >= AUDIT_KILL_SLOTS) {
		bpf_send_signal(SIGKILL);
		if (used >= AUDIT_SLOTS - 1) {
			ring->lost++;
			return;
		}
	}
	number = regs->orig_ax;
	if (number > 0xffff)
		number = 0xffff;
	record = &ring->slots[head & (AUDIT_SLOTS - 1)];
	record->time_ns = bpf_ktime_get_ns();
	record->thread = task->pid;
	record->number = number;
	record->result = result;
	if (task->thread_info.status & TS_COMPAT) {
		flags |= CT_SYSCALL_FLAG_COMPAT;
		record->arguments[0] = (__u32)regs->bx;
		record->arguments[1] = (__u32)regs->cx;
		record->arguments[2] = (__u32)regs->dx;
		record->arguments[3] = (__u32)regs->si;
		record->arguments[4] = (__u32)regs->di;
		sixth = number < 512 && six[1][number >> 6] & BIT(number) ? (__u32)regs->bp : 0;
	} else {
		record->arguments[0] = regs->di;
		record->arguments[1] = regs->si;
		record->arguments[2] = regs->dx;
		record->arguments[3] = regs->r10;
		record->arguments[4] = regs->r8;
		sixth = number < 512 && six[0][number >> 6] & BIT(number) ? regs->r9 : 0;
	}
	record->flags = flags;
	head++;
	if (sixth) {
		struct syscall_record *next = &ring->slots[head & (AUDIT_SLOTS - 1)];
		next->time_ns = record->time_ns;
		next->thread = record->thread;
		next->number = number;
		next->flags = flags | CT_SYSCALL_FLAG_SIXTH;
		next->result = result;
		next->arguments[0] = sixth;
		next->arguments[1] = 0;
		next->arguments[2] = 0;
		next->arguments[3] = 0;
		next->arguments[4] = 0;
		head++;
	}
	/* Stores stay in order on x86; the compiler has to keep it, too. */
	barrier();
	*(volatile __u64 *)&ring->head = head;
	wake_sleeper(state);
	if (used >= AUDIT_DOORBELL_SLOTS && (head ^ ring->rung) >= AUDIT_DOORBELL_EVERY) {
		ring->rung = head & ~(AUDIT_DOORBELL_EVERY - 1ULL);
		ring_doorbell();
	}
	if (used >= AUDIT_SLOW_SLOTS)
		wait(AUDIT_SLOW_NS);
}

SEC("tp_btf/sys_exit")
int BPF_PROG(audit_sys_exit, struct pt_regs *regs, long result)
{
	record_call(bpf_get_current_task_btf(), regs, result, 0);
	return 0;
}

/* Calls after which there is no exit, or other registers. */
SEC("tp_btf/sys_enter")
int BPF_PROG(audit_sys_enter, struct pt_regs *regs, long number)
{
	struct task_struct *task;

	switch (number) {
	case 59: /* execve; oldolduname */
	case 322: /* execveat; timerfd_create */
	case 60: /* exit; umask */
	case 231: /* exit_group; fgetxattr */
	case 15: /* rt_sigreturn; chmod */
	case 11: /* munmap; execve */
	case 358: /* none; execveat */
	case 1: /* write; exit */
	case 252: /* ioprio_get; exit_group */
	case 119: /* setresgid; sigreturn */
	case 173: /* ioperm; rt_sigreturn */
		break;
	default:
		return 0;
	}
	task = bpf_get_current_task_btf();
	switch (number) {
	case 59:
	case 322:
	case 60:
	case 231:
	case 15:
		if (task->thread_info.status & TS_COMPAT)
			return 0;
		break;
	default:
		if (!(task->thread_info.status & TS_COMPAT))
			return 0;
	}
	record_call(task, regs, 0, CT_SYSCALL_FLAG_AT_ENTRY);
	return 0;
}

/* --- Processes, files, connections --- */

SEC("tp_btf/sched_process_fork")
int BPF_PROG(audit_fork, struct task_struct *parent, struct task_struct *child)
{
	struct fork_record *record;

	if (child->pid != child->tgid || !is_job(child))
		return 0;
	code_forked(parent, child);
	record = BEGIN(sizeof *record);
	if (!record)
		return 0;
	fill(&record->head, CT_PROCESS_RECORD_FORK, sizeof *record);
	record->child = child->tgid;
	record->zero = 0;
	record->child_started_ns = child->start_time;
	submit(record);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(audit_exit, struct task_struct *task)
{
	const __u8 yes = 1;
	struct exit_record *record;
	struct told_key key = { .what = TOLD_EXIT };

	/* The last thread of a process; two that end at once may both take themselves for it. */
	if (!in_job() || task->signal->live.counter != 0)
		return 0;
	code_ended(task);
	key.started_ns = task->group_leader->start_time;
	key.device = task->tgid;
	if (bpf_map_update_elem(&told, &key, &yes, BPF_NOEXIST))
		return 0;
	record = BEGIN(sizeof *record);
	if (!record)
		return 0;
	fill(&record->head, CT_PROCESS_RECORD_EXIT, EXIT_RECORD_BYTES);
	/* As wait(2) sees it (kernel/exit.c, wait_task_zombie). */
	record->status = task->signal->flags & 4 /* SIGNAL_GROUP_EXIT */ ? task->signal->group_exit_code
									 : task->group_leader->exit_code;
	submit(record);
	return 0;
}

struct end_of_arguments {
	const char *text;
	__u32 left; /* Arguments whose end has not come. */
	__u32 bytes;
};

static long find_end(__u32 index, struct end_of_arguments *search)
{
	char byte;

	if (!search->left)
		return 1;
	bpf_probe_read_kernel(&byte, 1, search->text + index);
	search->bytes = index + 1;
	if (!byte)
		search->left--;
	return 0;
}

/*
 * The new program is in place, and its arguments lie on its stack where execve has put them: `argc` strings from `p` on,
 * then the environment up to `exec`. May fault and sleep.
 */
SEC("lsm.s/bprm_committed_creds")
int BPF_PROG(audit_exec, struct linux_binprm *bprm)
{
	struct code_settings *settings;
	struct inode *inode;
	struct exec_record *record;
	struct task_struct *task;
	struct end_of_arguments search;
	char *text;
	__u64 bytes, args;
	long length;

	if (!in_job())
		return 0;
	settings = code_settings();
	record = BEGIN(EXEC_SPACE);
	if (!record)
		return 0;
	inode = bprm->file->f_inode;
	fill(&record->head, CT_PROCESS_RECORD_EXEC, sizeof *record);
	task = bpf_get_current_task_btf();
	record->zero = 0;
	record->zero_too = 0;
	record->device = inode->i_sb->s_dev;
	record->inode = inode->i_ino;
	__builtin_memset(record->digest, 0, sizeof record->digest);
	if (settings && record->device != constants.root_device && inode->i_size <= MAX_RECORDED_BYTES &&
	    bpf_ima_file_hash(bprm->file, record->digest, sizeof record->digest) != HASH_ALGO_SHA256)
		__builtin_memset(record->digest, 0, sizeof record->digest);

	text = (char *)(record + 1);
	length = bpf_d_path(&bprm->file->f_path, text, MAX_PATH);
	if (length < 1 || length > MAX_PATH) {
		record->head.flags = CT_CUT;
		length = 1;
	}
	bytes = (length - 1) & (MAX_PATH - 1);
	record->binary_bytes = bytes;

	text = (char *)(record + 1) + bytes;
	args = bprm->exec - bprm->p;
	search.left = bprm->argc;
	search.bytes = 0;
	search.text = text;
	if (args > MAX_ARGS)
		args = MAX_ARGS;
	if (bpf_copy_from_user(text, args, (void *)bprm->p) == 0)
		bpf_loop(args, find_end, &search, 0);
	if (search.left)
		record->head.flags = CT_CUT;
	else if (search.bytes)
		search.bytes--; /* The last NUL. */
	args = search.bytes;
	if (args > MAX_ARGS)
		args = MAX_ARGS;
	record->args_bytes = args;

	text = (char *)(record + 1) + bytes + args;
	length = bpf_d_path(&task->fs->pwd, text, MAX_PATH);
	if (length < 1 || length > MAX_PATH) {
		record->head.flags = CT_CUT;
		length = 1;
	}
	record->cwd_bytes = length - 1;
	record->head.bytes = sizeof *record + bytes + args + length - 1;
	submit(record);
	return 0;
}

/* What connect(2) calls for TCP, also by way of MPTCP, and for UDP: with the kernel's copy of the address. */
static __always_inline int record_connect(struct socket *sock, void *address, int result)
{
	struct connect_record *record;
	__u16 family = 0;
	int is_inside;

	if (!in_job())
		return 0;
	bpf_probe_read_kernel(&family, sizeof family, address);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	record = BEGIN(sizeof *record);
	if (!record)
		return 0;
	__builtin_memset(record, 0, sizeof *record);
	fill(&record->head, CT_PROCESS_RECORD_CONNECT, CONNECT_RECORD_BYTES);
	record->family = family;
	bpf_probe_read_kernel(&record->port, sizeof record->port, address + 2);
	record->port = record->port >> 8 | record->port << 8;
	/* struct sockaddr_in and sockaddr_in6. */
	if (family == AF_INET)
		bpf_probe_read_kernel(record->address, 4, address + 4);
	else
		bpf_probe_read_kernel(record->address, 16, address + 8);
	record->protocol = sock->sk->sk_protocol;
	record->result = result;
	is_inside = family == AF_INET && *(__u8 *)record->address == 127;
	submit(record);
	/* Before the host is asked about it: policy may end the run, and whoever hears of that wants to know who it was. */
	if (!is_inside)
		ring_doorbell();
	return 0;
}

SEC("fexit/inet_stream_connect")
int BPF_PROG(audit_connect_stream, struct socket *sock, void *address, int length, int flags, int result)
{
	return record_connect(sock, address, result);
}

SEC("fexit/inet_dgram_connect")
int BPF_PROG(audit_connect_datagram, struct socket *sock, void *address, int length, int flags, int result)
{
	return record_connect(sock, address, result);
}

static __always_inline struct file_record *begin_file(__u8 what, __u32 detail)
{
	struct file_record *record = BEGIN(FILE_SPACE);

	if (!record)
		return 0;
	fill(&record->head, CT_PROCESS_RECORD_FILE, sizeof *record);
	record->what = what;
	record->zero = 0;
	record->path_bytes = 0;
	record->detail = detail;
	return record;
}

static __always_inline void end_file(struct file_record *record, __u64 bytes)
{
	record->path_bytes = bytes;
	record->head.bytes = sizeof *record + bytes;
	submit(record);
}

static __always_inline void end_file_at(struct file_record *record, struct path *path, struct dentry *entry)
{
	end_file(record, write_path(path, entry, (char *)(record + 1), &record->head.flags));
}

/*
 * Regular files that are opened to be written, and to be read if they are not those of the image. What a process opens
 * again is not told again.
 */
SEC("lsm/file_open")
int BPF_PROG(audit_open, struct file *file, int before)
{
	const __u8 yes = 1;
	struct task_struct *task;
	struct file_record *record;
	struct inode *inode;
	struct told_key key = { 0 };
	long length;

	if (before)
		return before;
	inode = file->f_inode;
	if (code_open(file, inode))
		return -EPERM;
	if (!in_job())
		return 0;
	if ((inode->i_mode & S_IFMT) != S_IFREG || file->f_flags & OPENED_TO_EXECUTE)
		return 0;
	key.what = file->f_mode & FMODE_WRITE || file->f_flags & (O_CREAT | O_TRUNC) ? CT_FILE_WHAT_WRITE
										    : CT_FILE_WHAT_READ;
	key.device = inode->i_sb->s_dev;
	if (key.what == CT_FILE_WHAT_READ && key.device == constants.root_device)
		return 0;
	if (file->f_mode & FMODE_CREATED && inode->i_mode & S_SETIDS)
		key.what = CT_FILE_WHAT_SETUID;
	key.inode = inode->i_ino;
	key.generation = inode->i_generation;
	task = bpf_get_current_task_btf();
	key.started_ns = task->group_leader->start_time;
	/* A new file always is. */
	if (!(file->f_mode & FMODE_CREATED) && bpf_map_lookup_elem(&told, &key))
		return 0;
	bpf_map_update_elem(&told, &key, &yes, BPF_ANY);
	record = begin_file(key.what, key.what == CT_FILE_WHAT_SETUID ? inode->i_mode : file->f_flags);
	if (!record)
		return 0;
	length = bpf_d_path(&file->f_path, (char *)(record + 1), MAX_PATH);
	if (length < 1 || length > MAX_PATH) {
		record->head.flags = CT_CUT;
		length = 1;
	}
	end_file(record, length - 1);
	return 0;
}

SEC("lsm/path_unlink")
int BPF_PROG(audit_unlink, struct path *directory, struct dentry *entry, int before)
{
	struct file_record *record;

	if (before || !in_job())
		return before;
	record = begin_file(CT_FILE_WHAT_UNLINK, 0);
	if (record)
		end_file_at(record, directory, entry);
	return 0;
}

/* Told by the new name: that is where something is now. */
SEC("lsm/path_rename")
int BPF_PROG(audit_rename, struct path *old_directory, struct dentry *old_entry, struct path *directory,
	     struct dentry *entry, unsigned flags, int before)
{
	struct file_record *record;

	if (before || !in_job())
		return before;
	record = begin_file(CT_FILE_WHAT_RENAME, flags);
	if (record)
		end_file_at(record, directory, entry);
	return 0;
}

SEC("lsm/path_chmod")
int BPF_PROG(audit_chmod, struct path *path, __u16 mode, int before)
{
	struct file_record *record;

	if (before || !(mode & S_SETIDS) || !in_job())
		return before;
	record = begin_file(CT_FILE_WHAT_SETUID, mode);
	if (record)
		end_file_at(record, path, path->dentry);
	return 0;
}

/* --- What would switch this off, or hide from it --- */

static __always_inline int deny(__u8 what)
{
	struct denied_record *record = BEGIN(sizeof *record);

	if (record) {
		__builtin_memset(record, 0, sizeof *record);
		fill(&record->head, CT_PROCESS_RECORD_DENIED, sizeof *record);
		record->what = what;
		submit(record);
	}
	return -EPERM;
}

/* A ring of io_uring does what it does without system calls. Its file is made with this name (io_uring/io_uring.c). */
SEC("lsm/inode_init_security_anon")
int BPF_PROG(audit_io_uring, struct inode *inode, struct qstr *name, struct inode *context, int before)
{
	char text[12] = { 0 };

	if (before || !in_job())
		return before;
	bpf_probe_read_kernel_str(text, sizeof text, name->name);
	if (text[0] != '[' || text[1] != 'i' || text[2] != 'o' || text[3] != '_' || text[4] != 'u' || text[5] != 'r')
		return 0;
	return deny(CT_DENIED_WHAT_IO_URING);
}

/*
 * Nobody of a job gets at a process that is none of it, whatever capabilities it has. To look (`ps` does) is no attempt
 * worth telling.
 */
SEC("lsm/ptrace_access_check")
int BPF_PROG(audit_ptrace, struct task_struct *child, unsigned mode, int before)
{
	if (before || !in_job() || is_job(child))
		return before;
	return mode & PTRACE_MODE_ATTACH ? deny(CT_DENIED_WHAT_PTRACE) : -EPERM;
}

/* Attached last: from then on nobody loads or changes anything, PID 1 no more than a job. */
SEC("lsm/bpf")
int BPF_PROG(audit_bpf, int command, void *attributes, unsigned size, int before)
{
	if (before)
		return before;
	return in_job() ? deny(CT_DENIED_WHAT_BPF) : -EPERM;
}

/* kernel.ftrace_enabled alone would switch all of this off. A network namespace's own settings are its owner's. */
SEC("cgroup/sysctl")
int audit_sysctl(struct bpf_sysctl *ctx)
{
	char name[8] = { 0 };

	if (!ctx->write)
		return 1;
	bpf_sysctl_get_name(ctx, name, sizeof name, 0);
	return name[0] == 'n' && name[1] == 'e' && name[2] == 't' && name[3] == '/';
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
