/* The confinement of helpers: see helper.h. */
#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "console.h"
#include "files.h"

/* The job dies first when memory is short. */
#define OOM_SCORE_ADJUSTMENT "-999"

static const struct helper *helper;

static void must(long result, const char *what)
{
	if (result < 0) {
		report("%s: %s: %s", helper->name, what, strerror(errno));
		_exit(1);
	}
}

/* seccomp(2); any other call ends the process, and with it the VM. */
static void filter_calls(void)
{
	struct sock_filter filter[6 + HELPER_MAX_CALLS];
	size_t count = 0;
	filter[count++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	filter[count++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
	filter[count++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	filter[count++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t index = 0; index < helper->call_count; index++)
		filter[count++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, helper->calls[index],
							       (unsigned char)(helper->call_count - index), 0);
	filter[count++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	filter[count++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = (unsigned short)count, .filter = filter };
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
}

/* An empty directory that cannot be written becomes the root, in a mount namespace that has nothing else. */
static void leave_file_systems(void)
{
	must(unshare(CLONE_NEWNS), "mount namespace");
	must(mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, "size=4k,nr_inodes=2,mode=0555"),
	     "empty root");
	must(chdir("/tmp"), "empty root");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "old root");
	must(chdir("/"), "empty root");
}

static void drop_privileges(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { 0 };
	must(setgroups(0, NULL), "groups");
	must(setresgid(helper->id, helper->id, helper->id), "group");
	must(setresuid(helper->id, helper->id, helper->id), "user");
	must(syscall(SYS_capset, &head, none), "capabilities");
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	/* Neither traced nor read by the job, whoever it is. */
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable");
}

static void limit(int resource, rlim_t value)
{
	struct rlimit limit = { value, value };
	must(setrlimit((__rlimit_resource_t)resource, &limit), "limits");
}

static int by_number(const void *left, const void *right)
{
	return *(const int *)left - *(const int *)right;
}

static void close_others(int ready_fd)
{
	int kept[HELPER_MAX_FDS + 1];
	size_t count = helper->fd_count;
	unsigned next = 3;
	memcpy(kept, helper->fds, count * sizeof kept[0]);
	kept[count++] = ready_fd;
	qsort(kept, count, sizeof kept[0], by_number);
	for (size_t index = 0; index < count; index++) {
		if ((unsigned)kept[index] > next)
			close_range(next, (unsigned)kept[index] - 1, 0);
		next = (unsigned)kept[index] + 1;
	}
	close_range(next, ~0U, 0);
}

static _Noreturn void helper_main(int ready_fd)
{
	const struct sched_param priority = { .sched_priority = helper->priority };
	must(prctl(PR_SET_NAME, helper->name, 0, 0, 0), "name");
	must(setsid(), "session");
	must(file_write_at(AT_FDCWD, "/proc/self/oom_score_adj", OOM_SCORE_ADJUSTMENT), "oom_score_adj");
	if (helper->priority > 0)
		must(sched_setscheduler(0, SCHED_FIFO, &priority), "priority");
	leave_file_systems();
	limit(RLIMIT_NOFILE, helper->files);
	limit(RLIMIT_FSIZE, 0);
	limit(RLIMIT_NPROC, 0);
	/* As PID 1: nothing of it may have to be read again in a guest without memory. */
	must(mlockall(MCL_CURRENT), "mlockall");
	drop_privileges();
	close_others(ready_fd);
	filter_calls();
	if (write(ready_fd, "", 1) != 1)
		_exit(1);
	close(ready_fd);
	_exit(helper->serve(helper->options));
}

int helper_start(const struct helper *described, int cgroup_fd)
{
	int ready[2], pidfd = -1;
	char byte;
	helper = described;
	if (helper->call_count > HELPER_MAX_CALLS || helper->fd_count > HELPER_MAX_FDS)
		fatal("%s needs too much", helper->name);
	if (pipe2(ready, O_CLOEXEC) < 0)
		fatal("cannot make a pipe: %s", strerror(errno));
	struct clone_args arguments = {
		.flags = CLONE_INTO_CGROUP | CLONE_PIDFD,
		.cgroup = (uint64_t)cgroup_fd,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
	if (pid < 0)
		fatal("cannot start %s: %s", helper->name, strerror(errno));
	if (pid == 0)
		helper_main(ready[1]);
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		fatal("%s could not be confined", helper->name);
	close(ready[0]);
	return pidfd;
}
