/*
 * Processes of the job: see exec.h.
 *
 * Under software emulation a fork that copies page tables and an exec that walks through a shell cost more than all
 * the rest of a request. So a program is started by clone3 in the agent's own memory, on a stack of its own, directly
 * in the job's cgroup. The agent does not wait for it as vfork would: a job that stops the child before its exec must
 * not stop PID 1. Until its exec the child therefore runs beside the agent in the same memory and may only use raw
 * system calls and its own spawn block: no errno, no malloc, no stdio.
 */
#include "exec.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "code.h"
#include "console.h"
#include "files.h"
#include "protocol.h"
#include "records.h"
#include "tree.h"

/* All of a request's arguments and environment; Linux itself allows 2 MiB (a quarter of the stack limit). */
#define MAX_SETUP_BYTES (1024 * 1024)
/* The same for all requests together, within the memory that boot.c reserves for the agent. */
#define MAX_ALL_SETUP_BYTES (8 * 1024 * 1024)
#define MAX_STRINGS 8192
#define FIRST_SETUP_BYTES 4096
/* What the child needs before exec: a few frames. */
#define CHILD_STACK_BYTES 16384
/* Bytes read from one pipe before others get their turn. */
#define READ_BUDGET (256 * 1024)
/* Tree streams are bulk data: fewer switches between agent and child. */
#define BULK_PIPE_BYTES (1024 * 1024)
/* What a terminal holds at most: the kernel's 64 KiB on the way, and 4 KiB that can be read at once. */
#define TERMINAL_BYTES (68 * 1024)
/* Processes of a session may start others while it is being killed. */
#define MAX_SESSION_SWEEPS 8
/* A tree may be deep, and the walk keeps a descriptor per level. */
#define BUILTIN_FILES 8192

enum stage { STAGE_SETUP, STAGE_IDENTITY, STAGE_CWD, STAGE_EXEC };

/* Everything the child touches. Written by the agent before the clone, then only by the child until it is reaped. */
struct spawn {
	char **arguments;
	char **environment;
	char **candidates; /* Paths to try in turn, NULL-terminated. */
	const char *cwd;
	uid_t uid;
	gid_t gid;
	int fds[3];
	bool privileged;
	bool terminal; /* fds are one, which is to control the session. */
	int error;
	enum stage stage;
};

enum state { SETTING_UP, RUNNING, ENDED, FINISHED };

enum builtin { BUILTIN_NONE, BUILTIN_TREE_IN, BUILTIN_TREE_OUT };

struct output {
	struct source source;
	int fd;
	uint8_t record;
	bool readable;
	bool hung_up;
	size_t remaining; /* Once the process has ended: what it had written by then and we have not read. */
};

struct exec {
	struct exec *next;
	struct stream *stream; /* NULL once the stream is gone. */
	enum state state;

	/* Setup: records one after another as kind byte, text, NUL. */
	char *arena;
	size_t arena_bytes;
	size_t arena_size;
	size_t argument_count;
	size_t variable_count;
	const char *cwd; /* Into the arena, set at start. */
	bool have_cwd;
	bool have_user;
	enum builtin builtin;
	bool terminal; /* Input and outputs[0] are the agent's side of a pseudo-terminal; there is no outputs[1]. */
	uid_t uid;
	gid_t gid;
	char script_name[65];
	size_t script_bytes;
	char secret_name[CT_MAX_SECRET_NAME_BYTES + 1]; /* Of the secret whose data comes next, or empty. */

	pid_t pid;
	int status;
	struct spawn *spawn;
	void *stack;
	uint64_t oom_kills_before;
	struct output outputs[2];

	/* Input that the process has not taken yet; bounded by the stream's window. */
	struct source stdin_source;
	int stdin_fd;
	bool stdin_watched;
	bool stdin_ended;
	uint8_t *pending;
	size_t pending_start;
	size_t pending_end;
	size_t pending_size;
};

static const struct link_options *options;
static struct exec *execs;
static size_t all_setup_bytes;
static int memory_events_fd = -1;
static int null_fd = -1;
/* As of the last end of a process: reading it before each start would be on the way to the first instruction. */
static uint64_t oom_kills_seen;

static uint64_t oom_kills(void)
{
	char text[256];
	ssize_t length = memory_events_fd < 0 ? -1 : pread(memory_events_fd, text, sizeof text - 1, 0);
	if (length < 0)
		return 0;
	text[length] = '\0';
	const char *found = strstr(text, "oom_kill ");
	return found ? strtoull(found + strlen("oom_kill "), NULL, 10) : 0;
}

/* --- The child --- */

static long raw(long number, long first, long second, long third, long fourth)
{
	long result;
	register long r10 __asm__("r10") = fourth;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(first), "S"(second), "d"(third), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

/* Gives up everything root has. */
static long child_drop_privileges(const struct spawn *spawn)
{
	if (!spawn->privileged)
		return 0;
	long result = raw(SYS_setgroups, 0, 0, 0, 0);
	if (result == 0)
		result = raw(SYS_setresgid, spawn->gid, spawn->gid, spawn->gid, 0);
	if (result == 0)
		result = raw(SYS_setresuid, spawn->uid, spawn->uid, spawn->uid, 0);
	if (result == 0 && spawn->uid == 0) {
		/* Root loses its capabilities only when told to. The bounding set is empty since boot. */
		struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
		struct __user_cap_data_struct none[2] = { { 0, 0, 0 }, { 0, 0, 0 } };
		result = raw(SYS_capset, (long)&head, (long)none, 0, 0);
	}
	return result;
}

/* Raw calls only: see the top of the file. Returns 0 or -errno. */
static long child_prepare(struct spawn *spawn)
{
	spawn->stage = STAGE_SETUP;
	raw(SYS_setsid, 0, 0, 0, 0);
	for (int fd = 0; fd < 3; fd++) {
		long result = raw(SYS_dup3, spawn->fds[fd], fd, 0, 0);
		if (result < 0)
			return result;
	}
	if (spawn->terminal) {
		long result = raw(SYS_ioctl, 0, TIOCSCTTY, 0, 0);
		if (result < 0)
			return result;
	}
	spawn->stage = STAGE_IDENTITY;
	long result = child_drop_privileges(spawn);
	if (result < 0)
		return result;
	/* As the job's user: a directory closed to it stays closed. */
	spawn->stage = STAGE_CWD;
	result = raw(SYS_chdir, (long)spawn->cwd, 0, 0, 0);
	if (result < 0)
		return result;
	spawn->stage = STAGE_EXEC;
	/* Every handler is at its default already: the agent blocks signals instead of ignoring them. */
	uint64_t none = 0;
	return raw(SYS_rt_sigprocmask, SIG_SETMASK, (long)&none, 0, sizeof none);
}

static _Noreturn void child_main(void *argument)
{
	struct spawn *spawn = argument;
	long error = child_prepare(spawn);
	if (error == 0) {
		/* As execvp does: go on where a candidate is missing, but remember one that is there and cannot be run. */
		error = -ENOENT;
		for (char **candidate = spawn->candidates; *candidate; candidate++) {
			long result =
				raw(SYS_execve, (long)*candidate, (long)spawn->arguments, (long)spawn->environment, 0);
			if (result != -ENOENT && result != -ENOTDIR)
				error = result;
			if (result != -ENOENT && result != -ENOTDIR && result != -EACCES)
				break;
		}
	}
	spawn->error = (int)-error;
	for (;;)
		raw(SYS_exit, 127, 0, 0, 0);
}

/*
 * clone3 with a new stack. The child begins right after the system call with nothing on its stack, so it must not
 * return into this function: it calls `run`, which never returns. The system call preserves r8 and r9.
 */
static long clone_onto_stack(struct clone_args *arguments, void (*run)(void *), void *argument)
{
	long result;
	register void (*r8)(void *) __asm__("r8") = run;
	register void *r9 __asm__("r9") = argument;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "mov %%r9, %%rdi\n\t"
			 "call *%%r8\n\t"
			 "ud2\n"
			 "1:"
			 : "=a"(result)
			 : "0"((long)SYS_clone3), "D"(arguments), "S"(sizeof *arguments), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* --- Setup --- */

struct exec *exec_new(struct stream *stream)
{
	struct exec *exec = calloc(1, sizeof *exec);
	if (!exec)
		return NULL;
	exec->stream = stream;
	exec->stdin_fd = exec->outputs[0].fd = exec->outputs[1].fd = -1;
	exec->next = execs;
	execs = exec;
	return exec;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/*
 * A closed descriptor leaves epoll only when no process holds a copy; a child that has not reached its exec does, and
 * the event would come with a pointer to what is gone.
 */
static void close_watched(int *fd)
{
	if (*fd >= 0)
		loop_remove(*fd);
	close_fd(fd);
}

static void close_stdin(struct exec *exec)
{
	if (exec->stdin_watched)
		close_watched(&exec->stdin_fd);
	else
		close_fd(&exec->stdin_fd);
	exec->stdin_watched = false;
}

static void free_arena(char *arena, size_t size)
{
	if (!arena)
		return;
	explicit_bzero(arena, size); /* The environment holds secrets. */
	free(arena);
	all_setup_bytes -= size;
}

/* All of them, or the one of that name. The names of those that were written are in the arena. */
static void remove_secrets(struct exec *exec, const char *name)
{
	for (char *at = exec->arena; at && at < exec->arena + exec->arena_bytes; at += strlen(at) + 1) {
		char *kind = at++;
		if (*kind != CT_EXEC_INPUT_SECRET_NAME || (name && strcmp(at, name) != 0))
			continue;
		if (unlinkat(options->secret_fd, at, 0) < 0)
			report("cannot remove a secret: %s", strerror(errno));
		*kind = 0; /* Once: another process may have a file of that name by then. */
	}
}

static void drop_setup(struct exec *exec)
{
	remove_secrets(exec, NULL);
	free_arena(exec->arena, exec->arena_size);
	free(exec->spawn);
	free(exec->stack);
	exec->arena = NULL;
	exec->arena_size = exec->arena_bytes = 0;
	exec->spawn = NULL;
	exec->stack = NULL;
}

static void close_pipes(struct exec *exec)
{
	close_stdin(exec);
	close_watched(&exec->outputs[0].fd);
	close_watched(&exec->outputs[1].fd);
	free(exec->pending);
	exec->pending = NULL;
	exec->pending_start = exec->pending_end = exec->pending_size = 0;
}

static void exec_free(struct exec *exec)
{
	struct exec **link = &execs;
	while (*link != exec)
		link = &(*link)->next;
	*link = exec->next;
	close_pipes(exec);
	drop_setup(exec);
	free(exec);
}

bool exec_streams(uint8_t type)
{
	return type == CT_EXEC_INPUT_STDIN || type == CT_EXEC_INPUT_SCRIPT_DATA;
}

static int refuse(const char **reason, const char *text)
{
	*reason = text;
	return -1;
}

static int add_string(struct exec *exec, uint8_t kind, const uint8_t *text, size_t length, const char **reason)
{
	if (memchr(text, 0, length))
		return refuse(reason, "a string contains a NUL byte");
	if (exec->argument_count + exec->variable_count == MAX_STRINGS)
		return refuse(reason, "too many arguments and variables");
	size_t need = exec->arena_bytes + length + 2;
	if (need > MAX_SETUP_BYTES)
		return refuse(reason, "arguments and environment exceed 1 MiB");
	if (need > exec->arena_size) {
		size_t size = exec->arena_size ? exec->arena_size : FIRST_SETUP_BYTES;
		while (size < need)
			size *= 2;
		if (all_setup_bytes + size > MAX_ALL_SETUP_BYTES)
			return refuse(reason, "too many large requests at once");
		char *arena = malloc(size);
		if (!arena)
			return refuse(reason, "no memory");
		all_setup_bytes += size;
		if (exec->arena_bytes)
			memcpy(arena, exec->arena, exec->arena_bytes);
		free_arena(exec->arena, exec->arena_size);
		exec->arena = arena;
		exec->arena_size = size;
	}
	char *at = exec->arena + exec->arena_bytes;
	*at++ = (char)kind;
	memcpy(at, text, length);
	at[length] = '\0';
	exec->arena_bytes = need;
	return 0;
}

static int set_builtin(struct exec *exec, const uint8_t *name, size_t length, const char **reason)
{
	if (length == strlen("tree-in") && memcmp(name, "tree-in", length) == 0)
		exec->builtin = BUILTIN_TREE_IN;
	else if (length == strlen("tree-out") && memcmp(name, "tree-out", length) == 0)
		exec->builtin = BUILTIN_TREE_OUT;
	else
		return refuse(reason, "no such built-in");
	return 0;
}

static int set_script_name(struct exec *exec, const uint8_t *name, size_t length, const char **reason)
{
	if (exec->script_name[0] || length < 1 || length >= sizeof exec->script_name || name[0] == '.')
		return refuse(reason, "not a script name");
	for (size_t index = 0; index < length; index++) {
		uint8_t byte = name[index];
		if (!(byte >= 'a' && byte <= 'z') && !(byte >= '0' && byte <= '9') && byte != '.' && byte != '-')
			return refuse(reason, "not a script name");
	}
	memcpy(exec->script_name, name, length);
	/* A new file, never a rewritten one: an earlier step may still run the old. */
	if (unlinkat(options->script_fd, exec->script_name, 0) < 0 && errno != ENOENT)
		return refuse(reason, "cannot replace the script");
	return 0;
}

/*
 * Opened and closed for each piece: a process started meanwhile would inherit a descriptor that is open for writing
 * until its own exec, and the kernel would refuse to run the script (ETXTBSY).
 */
static int add_script_data(struct exec *exec, const uint8_t *data, size_t length, const char **reason)
{
	if (!exec->script_name[0])
		return refuse(reason, "script data without a script name");
	if (length > CT_MAX_SCRIPT_BYTES - exec->script_bytes)
		return refuse(reason, "the script is too long");
	int flags = O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC | (exec->script_bytes ? 0 : O_CREAT);
	int fd = openat(options->script_fd, exec->script_name, flags, 0555);
	ssize_t written = fd < 0 ? -1 : write(fd, data, length);
	close_fd(&fd);
	if (written != (ssize_t)length)
		return refuse(reason, "cannot write the script");
	exec->script_bytes += length;
	return 0;
}

static int set_secret_name(struct exec *exec, const uint8_t *name, size_t length, const char **reason)
{
	if (exec->secret_name[0] || length < 1 || length > CT_MAX_SECRET_NAME_BYTES)
		return refuse(reason, "not a secret's name");
	for (size_t index = 0; index < length; index++) {
		uint8_t byte = name[index];
		if (!(byte >= 'a' && byte <= 'z') && !(byte >= 'A' && byte <= 'Z') && !(byte >= '0' && byte <= '9') &&
		    byte != '_')
			return refuse(reason, "not a secret's name");
	}
	memcpy(exec->secret_name, name, length);
	exec->secret_name[length] = '\0';
	return 0;
}

/* On the tmpfs of /run, which nothing can swap out. */
static int write_secret(struct exec *exec, const uint8_t *data, size_t length, const char **reason)
{
	if (!exec->secret_name[0])
		return refuse(reason, "a secret's data without its name");
	/* The step before may have been given up with its end still on the way. */
	for (struct exec *other = execs; other; other = other->next)
		remove_secrets(other, exec->secret_name);
	int fd = openat(options->secret_fd, exec->secret_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
	if (fd < 0)
		return refuse(reason, "cannot create the secret");
	size_t name_length = strlen(exec->secret_name);
	int result = add_string(exec, CT_EXEC_INPUT_SECRET_NAME, (uint8_t *)exec->secret_name, name_length, reason);
	if (result < 0) {
		unlinkat(options->secret_fd, exec->secret_name, 0);
	} else if (write(fd, data, length) != (ssize_t)length ||
		   (geteuid() == 0 && fchown(fd, exec->have_user ? exec->uid : options->user.uid,
					     exec->have_user ? exec->gid : options->user.gid) < 0)) {
		result = refuse(reason, "cannot write the secret");
	}
	close_fd(&fd);
	exec->secret_name[0] = '\0';
	return result;
}

/* --- Start --- */

/* Counts and fills the pointer arrays in one block, with room for the paths to try. */
static struct spawn *make_spawn(struct exec *exec)
{
	const char *name = NULL, *path = NULL;
	exec->cwd = "/";
	for (char *at = exec->arena; at < exec->arena + exec->arena_bytes; at += strlen(at) + 1) {
		char kind = *at++;
		if (kind == CT_EXEC_INPUT_ARG && !name)
			name = at;
		else if (kind == CT_EXEC_INPUT_ENV && strncmp(at, "PATH=", 5) == 0)
			path = at + 5;
		else if (kind == CT_EXEC_INPUT_CWD)
			exec->cwd = at;
	}
	/* Lookup as in execvp: an empty element means the working directory. */
	bool search = name && *name && !strchr(name, '/');
	size_t candidates = 1;
	size_t path_bytes = 0;
	if (search) {
		if (!path)
			path = "/usr/local/bin:/usr/bin:/bin";
		for (const char *at = path; *at; at++)
			candidates += *at == ':';
		path_bytes = strlen(path) + candidates * (strlen(name) + 2);
	}
	size_t pointers = exec->argument_count + 1 + exec->variable_count + 1 + candidates + 1;
	struct spawn *spawn = calloc(1, sizeof *spawn + pointers * sizeof(char *) + path_bytes);
	if (!spawn)
		return NULL;
	char **pointer = (char **)(spawn + 1);
	spawn->arguments = pointer;
	spawn->environment = spawn->arguments + exec->argument_count + 1;
	spawn->candidates = spawn->environment + exec->variable_count + 1;
	char **argument = spawn->arguments, **variable = spawn->environment;
	for (char *at = exec->arena; at < exec->arena + exec->arena_bytes; at += strlen(at) + 1) {
		char kind = *at++;
		if (kind == CT_EXEC_INPUT_ARG)
			*argument++ = at;
		else if (kind == CT_EXEC_INPUT_ENV)
			*variable++ = at;
	}
	if (search) {
		char *text = (char *)(spawn->candidates + candidates + 1);
		for (size_t index = 0; index < candidates; index++) {
			size_t length = strcspn(path, ":");
			spawn->candidates[index] = text;
			text += sprintf(text, "%.*s%s%s", (int)length, path, length ? "/" : "", name) + 1;
			path += length + 1;
		}
	} else {
		spawn->candidates[0] = spawn->arguments[0];
	}
	spawn->cwd = exec->cwd;
	spawn->uid = exec->uid;
	spawn->gid = exec->gid;
	spawn->privileged = geteuid() == 0;
	return spawn;
}

/* The agent's end never blocks; the child's does. The job's user owns the pipe, so that it can open /dev/stdout. */
static int make_pipe(uid_t uid, gid_t gid, int *ours, int *theirs, bool input)
{
	int fds[2];
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -1;
	*ours = fds[input ? 1 : 0];
	*theirs = fds[input ? 0 : 1];
	if (fcntl(*ours, F_SETFL, O_NONBLOCK) == 0 && (geteuid() != 0 || fchown(*ours, uid, gid) == 0))
		return 0;
	close_fd(ours);
	close_fd(theirs);
	return -1;
}

/*
 * A pseudo-terminal of the job's devpts. The agent has its side twice, for input and output, so that these come to
 * their ends apart, as pipes do; it hangs up by closing both. The job's user owns the other side, as after a login.
 */
static int make_terminal(struct exec *exec, const struct winsize *size, int theirs[3])
{
	int unlocked = 0;
	int ours = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	exec->outputs[0].fd = ours;
	if (ours < 0 || ioctl(ours, TIOCSPTLCK, &unlocked) < 0 || ioctl(ours, TIOCSWINSZ, size) < 0)
		return -1;
	exec->stdin_fd = fcntl(ours, F_DUPFD_CLOEXEC, 0);
	if (exec->stdin_fd < 0)
		return -1;
	/* Without a path: the job cannot have put something else in its place. */
	theirs[0] = ioctl(ours, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (theirs[0] < 0 || (geteuid() == 0 && fchown(theirs[0], exec->uid, exec->gid) < 0))
		return -1;
	theirs[1] = fcntl(theirs[0], F_DUPFD_CLOEXEC, 0);
	theirs[2] = fcntl(theirs[0], F_DUPFD_CLOEXEC, 0);
	return theirs[1] < 0 || theirs[2] < 0 ? -1 : 0;
}

/* Pipes for the next process, made while nobody waits for them: right after a restore that takes 5 ms. */
static struct {
	int ours;
	int theirs;
} spare_outputs[2] = { { -1, -1 }, { -1, -1 } };

void exec_idle(void)
{
	for (int index = 0; index < 2; index++) {
		int ours, theirs;
		if (spare_outputs[index].ours >= 0 || make_pipe(options->user.uid, options->user.gid, &ours, &theirs, false) < 0)
			continue; /* start() will try again, and report it. */
		spare_outputs[index].ours = ours;
		spare_outputs[index].theirs = theirs;
	}
}

void exec_init(const struct link_options *link_options)
{
	options = link_options;
	if (options->cgroup_fd >= 0)
		memory_events_fd = openat(options->cgroup_fd, "memory.events", O_RDONLY | O_CLOEXEC);
	null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (null_fd < 0)
		fatal("cannot open /dev/null: %s", strerror(errno));
	exec_idle();
}

static int make_output(struct exec *exec, int index, int *theirs)
{
	int *ours = &exec->outputs[index].fd;
	if (spare_outputs[index].ours < 0 || exec->uid != options->user.uid || exec->gid != options->user.gid)
		return make_pipe(exec->uid, exec->gid, ours, theirs, false);
	*ours = spare_outputs[index].ours;
	*theirs = spare_outputs[index].theirs;
	spare_outputs[index].ours = -1;
	return 0;
}

static int make_pipes(struct exec *exec, uint8_t flags, int theirs[3])
{
	if (flags & CT_EXEC_FLAG_STDIN && make_pipe(exec->uid, exec->gid, &exec->stdin_fd, &theirs[0], true) < 0)
		return -1;
	return make_output(exec, 0, &theirs[1]) < 0 || make_output(exec, 1, &theirs[2]) < 0 ? -1 : 0;
}

static void output_ready(struct source *source, uint32_t events)
{
	struct output *output = (struct output *)source;
	output->readable = true;
	if (events & (EPOLLHUP | EPOLLERR))
		output->hung_up = true;
}

static _Noreturn void builtin_main(struct exec *exec, struct spawn *spawn, bool asks_for_code)
{
	long result = child_prepare(spawn);
	if (result < 0) {
		dprintf(2, "%s: %s\n", spawn->stage == STAGE_CWD ? spawn->cwd : "built-in", strerror((int)-result));
		_exit(1);
	}
	/* No exec will close them: the port and everybody else's pipes. */
	close_range(3, ~0U, 0);
	struct rlimit files = { BUILTIN_FILES, BUILTIN_FILES };
	setrlimit(RLIMIT_NOFILE, &files);
	umask(0);
	char **arguments = spawn->arguments;
	if (exec->builtin == BUILTIN_TREE_IN)
		_exit(tree_in(0, 2, arguments[0], asks_for_code));
	_exit(tree_out(1, 2, arguments[0], arguments + 1, exec->argument_count - 1));
}

static pid_t spawn_process(struct exec *exec)
{
	struct clone_args arguments = { .exit_signal = SIGCHLD };
	if (options->cgroup_fd >= 0) {
		arguments.flags = CLONE_INTO_CGROUP;
		arguments.cgroup = (uint64_t)options->cgroup_fd;
	}
	if (exec->builtin != BUILTIN_NONE) {
		bool asks_for_code = code_has_digests(); /* The child cannot tell: it does not inherit what says so. */
		long result = raw(SYS_clone3, (long)&arguments, sizeof arguments, 0, 0);
		if (result == 0)
			builtin_main(exec, exec->spawn, asks_for_code);
		return (pid_t)result;
	}
	exec->stack = aligned_alloc(16, CHILD_STACK_BYTES);
	if (!exec->stack)
		return -ENOMEM;
	arguments.flags |= CLONE_VM;
	arguments.stack = (uint64_t)(uintptr_t)exec->stack;
	arguments.stack_size = CHILD_STACK_BYTES;
	return (pid_t)clone_onto_stack(&arguments, child_main, exec->spawn);
}

static void send_failed(struct exec *exec, int error, enum stage stage)
{
	uint8_t record[512];
	const char *subject = "cannot start a process";
	if (stage == STAGE_IDENTITY)
		subject = "cannot become the user";
	else if (stage == STAGE_CWD)
		subject = exec->cwd;
	else if (stage == STAGE_EXEC && exec->spawn)
		subject = exec->spawn->arguments[0];
	put_u32(record, (uint32_t)error);
	int length = snprintf((char *)record + 4, sizeof record - 4, "%.300s: %s", subject, strerror(error));
	stream_record(exec->stream, CT_EXEC_OUTPUT_FAILED, record, 4 + (size_t)length);
	stream_finish(exec->stream);
	exec->state = FINISHED;
}

static struct winsize get_size(const uint8_t *at)
{
	return (struct winsize){ .ws_row = (unsigned short)(at[0] << 8 | at[1]),
				 .ws_col = (unsigned short)(at[2] << 8 | at[3]) };
}

static int start(struct exec *exec, const uint8_t *payload, size_t length, const char **reason)
{
	uint8_t flags = length ? payload[0] : 0;
	exec->terminal = flags & CT_EXEC_FLAG_TERMINAL;
	if (length != (exec->terminal ? 5 : 1) || flags & ~(CT_EXEC_FLAG_STDIN | CT_EXEC_FLAG_TERMINAL))
		return refuse(reason, "not start flags");
	if (exec->terminal && exec->builtin != BUILTIN_NONE)
		return refuse(reason, "a built-in has no use for a terminal");
	if (exec->argument_count == 0)
		return refuse(reason, "no arguments");
	if (!exec->have_user) {
		exec->uid = options->user.uid;
		exec->gid = options->user.gid;
	}
	int theirs[3] = { -1, -1, -1 };
	stream_respond(exec->stream);
	exec->spawn = make_spawn(exec);
	int error = exec->spawn ? 0 : ENOMEM;
	if (!error) {
		struct winsize size = { 0 };
		if (exec->terminal)
			size = get_size(payload + 1);
		if ((exec->terminal ? make_terminal(exec, &size, theirs) : make_pipes(exec, flags, theirs)) < 0)
			error = errno;
	}
	if (!error && exec->builtin != BUILTIN_NONE) {
		/* Smaller pipes work as well. */
		if (exec->stdin_fd >= 0)
			fcntl(exec->stdin_fd, F_SETPIPE_SZ, BULK_PIPE_BYTES);
		fcntl(exec->outputs[0].fd, F_SETPIPE_SZ, BULK_PIPE_BYTES);
	}
	for (int index = 0; !error && index < (exec->terminal ? 1 : 2); index++) {
		struct output *output = &exec->outputs[index];
		output->source.ready = output_ready;
		output->record = index == 0 ? CT_EXEC_OUTPUT_STDOUT : CT_EXEC_OUTPUT_STDERR;
		if (loop_add(&output->source, output->fd, EPOLLIN) < 0)
			error = errno;
	}
	if (!error) {
		memcpy(exec->spawn->fds, theirs, sizeof theirs);
		exec->spawn->terminal = exec->terminal;
		if (theirs[0] < 0)
			exec->spawn->fds[0] = null_fd;
		exec->oom_kills_before = oom_kills_seen;
		exec->pid = spawn_process(exec);
		if (exec->pid < 0)
			error = -exec->pid;
	}
	for (int index = 0; index < 3; index++)
		close_fd(&theirs[index]);
	if (error) {
		close_pipes(exec);
		send_failed(exec, error, STAGE_SETUP);
		return 0;
	}
	uint8_t pid[4];
	put_u32(pid, (uint32_t)exec->pid);
	stream_record(exec->stream, CT_EXEC_OUTPUT_STARTED, pid, sizeof pid);
	exec->state = RUNNING;
	return 0;
}

/* --- Input --- */

/* No one will read it any more: give the host its credit back. */
static void discard_input(struct exec *exec)
{
	size_t held = exec->pending_end - exec->pending_start;
	close_stdin(exec);
	free(exec->pending);
	exec->pending = NULL;
	exec->pending_start = exec->pending_end = exec->pending_size = 0;
	if (held && exec->stream)
		stream_consume(exec->stream, held);
}

static void stdin_writable(struct source *source, uint32_t events);

/* Returns how much the pipe took. */
static size_t write_stdin(struct exec *exec, const uint8_t *data, size_t length)
{
	size_t written = 0;
	while (exec->stdin_fd >= 0 && written < length) {
		ssize_t result = write(exec->stdin_fd, data + written, length - written);
		if (result > 0) {
			written += (size_t)result;
			continue;
		}
		if (result < 0 && errno == EINTR)
			continue;
		if (result < 0 && errno == EAGAIN) {
			if (exec->stdin_watched)
				break;
			/* Watched from the first time it is full; the edge may lie between the write and this, so try again. */
			exec->stdin_watched = true;
			exec->stdin_source.ready = stdin_writable;
			if (loop_add(&exec->stdin_source, exec->stdin_fd, EPOLLOUT) == 0)
				continue;
		}
		/* EPIPE: the process has closed its stdin. */
		close_stdin(exec);
	}
	return exec->stdin_fd < 0 ? length : written;
}

static void flush_stdin(struct exec *exec)
{
	if (exec->pending_end > exec->pending_start) {
		size_t taken = write_stdin(exec, exec->pending + exec->pending_start, exec->pending_end - exec->pending_start);
		exec->pending_start += taken;
		if (taken && exec->stream)
			stream_consume(exec->stream, taken);
	}
	if (exec->pending_start == exec->pending_end) {
		exec->pending_start = exec->pending_end = 0;
		if (exec->stdin_ended)
			close_stdin(exec);
	}
}

static void stdin_writable(struct source *source, uint32_t events)
{
	(void)events;
	flush_stdin((struct exec *)((char *)source - offsetof(struct exec, stdin_source)));
}

static int take_stdin(struct exec *exec, const uint8_t *data, size_t length, const char **reason)
{
	if (length == 0) {
		exec->stdin_ended = true;
		flush_stdin(exec);
		return 0;
	}
	if (exec->stdin_fd < 0)
		return 0;
	if (exec->stdin_ended)
		return refuse(reason, "stdin goes on after its end");
	if (exec->pending_end == exec->pending_start) {
		size_t taken = write_stdin(exec, data, length);
		data += taken;
		length -= taken;
		if (length == 0)
			return 0;
	}
	if (exec->pending_size - exec->pending_end < length) {
		if (exec->pending_start > 0) {
			exec->pending_end -= exec->pending_start;
			memmove(exec->pending, exec->pending + exec->pending_start, exec->pending_end);
			exec->pending_start = 0;
		}
		size_t size = exec->pending_size ? exec->pending_size : CT_MAX_RECORD_BYTES;
		while (size - exec->pending_end < length)
			size *= 2;
		uint8_t *pending = realloc(exec->pending, size);
		if (!pending)
			return refuse(reason, "no memory");
		exec->pending = pending;
		exec->pending_size = size;
	}
	memcpy(exec->pending + exec->pending_end, data, length);
	exec->pending_end += length;
	return (int)length;
}

static void signal_group(const struct exec *exec, int number)
{
	/* The process leads its group from its first moments on; before, only it exists. Not reaped yet: still ours. */
	if (kill(-exec->pid, number) < 0 || number == SIGKILL)
		kill(exec->pid, number);
}

/* The session of a process in its stat file, or -1: pid (name) state ppid pgrp session. A name may hold anything. */
static pid_t session_of(int proc, const char *pid)
{
	char path[64], text[512];
	snprintf(path, sizeof path, "%.20s/stat", pid);
	int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	close_fd(&fd);
	if (length < 0)
		return -1;
	text[length] = '\0';
	const char *end = strrchr(text, ')');
	char state;
	int session;
	if (!end || sscanf(end + 1, " %c %*d %*d %d", &state, &session) != 2 || state == 'Z')
		return -1;
	return session;
}

/*
 * A shell gives each of its jobs a process group of its own. The hang-up tells those that listen; the others would stay
 * behind in the job with nobody to see them.
 */
static void kill_session(pid_t session)
{
	bool found = true;
	for (int sweep = 0; found && sweep < MAX_SESSION_SWEEPS; sweep++) {
		found = false;
		DIR *proc = opendir("/proc");
		for (struct dirent *entry; proc && (entry = readdir(proc));) {
			if (!isdigit((unsigned char)entry->d_name[0]) || session_of(dirfd(proc), entry->d_name) != session)
				continue;
			found = kill((pid_t)atoi(entry->d_name), SIGKILL) == 0 || found;
		}
		if (proc)
			closedir(proc);
	}
}

static int input_while_running(struct exec *exec, uint8_t type, const uint8_t *payload, size_t length,
			       const char **reason)
{
	switch (type) {
	case CT_EXEC_INPUT_STDIN:
		return take_stdin(exec, payload, length, reason);
	case CT_EXEC_INPUT_SIGNAL:
		if (length != 1 || payload[0] < 1 || payload[0] > 64)
			return refuse(reason, "not a signal");
		if (exec->state == RUNNING)
			signal_group(exec, payload[0]);
		return 0;
	case CT_EXEC_INPUT_RESIZE:
		if (length != 4 || !exec->terminal)
			return refuse(reason, "not the size of a terminal");
		if (exec->state == RUNNING && exec->outputs[0].fd >= 0) {
			struct winsize size = get_size(payload);
			ioctl(exec->outputs[0].fd, TIOCSWINSZ, &size);
		}
		return 0;
	case CT_EXEC_INPUT_KILL_ALL:
		if (length != 0)
			return refuse(reason, "kill-all has no payload");
		exec_kill_all();
		return 0;
	default:
		return refuse(reason, "not a record for a started program");
	}
}

int exec_input(struct exec *exec, uint8_t type, const uint8_t *payload, size_t length, bool first,
	       const char **reason)
{
	(void)first;
	if (exec->state != SETTING_UP)
		return input_while_running(exec, type, payload, length, reason);
	switch (type) {
	case CT_EXEC_INPUT_ARG:
		if (add_string(exec, type, payload, length, reason) < 0)
			return -1;
		exec->argument_count++;
		return 0;
	case CT_EXEC_INPUT_ENV:
		if (length == 0 || payload[0] == '=' || !memchr(payload, '=', length))
			return refuse(reason, "not an environment variable");
		if (add_string(exec, type, payload, length, reason) < 0)
			return -1;
		exec->variable_count++;
		return 0;
	case CT_EXEC_INPUT_CWD:
		if (exec->have_cwd || length == 0 || payload[0] != '/')
			return refuse(reason, "not an absolute working directory");
		exec->have_cwd = true;
		return add_string(exec, type, payload, length, reason);
	case CT_EXEC_INPUT_USER:
		if (exec->have_user || length != 8)
			return refuse(reason, "not a user");
		exec->have_user = true;
		exec->uid = get_u32(payload);
		exec->gid = get_u32(payload + 4);
		if (exec->uid == (uid_t)-1 || exec->gid == (gid_t)-1)
			return refuse(reason, "not a user");
		return 0;
	case CT_EXEC_INPUT_BUILTIN:
		return set_builtin(exec, payload, length, reason);
	case CT_EXEC_INPUT_SCRIPT_NAME:
		return set_script_name(exec, payload, length, reason);
	case CT_EXEC_INPUT_SCRIPT_DATA:
		return add_script_data(exec, payload, length, reason);
	case CT_EXEC_INPUT_SECRET_NAME:
		return set_secret_name(exec, payload, length, reason);
	case CT_EXEC_INPUT_SECRET_DATA:
		return write_secret(exec, payload, length, reason);
	case CT_EXEC_INPUT_KILL_ALL:
		/* A job that left as many processes as it may have would otherwise keep any other from starting. */
		return input_while_running(exec, type, payload, length, reason);
	case CT_EXEC_INPUT_START:
		return start(exec, payload, length, reason);
	default:
		return refuse(reason, "not a record for setting up a program");
	}
}

int exec_input_end(struct exec *exec)
{
	if (exec->state == SETTING_UP)
		return -1;
	exec->stdin_ended = true;
	flush_stdin(exec);
	return 0;
}

void exec_detach(struct exec *exec)
{
	exec->stream = NULL;
	if (exec->state == RUNNING) {
		if (exec->terminal)
			kill_session(exec->pid);
		signal_group(exec, SIGKILL);
		close_pipes(exec);
		remove_secrets(exec, NULL);
	} else {
		exec_free(exec);
	}
}

/* --- Output and end --- */

/* Reads until the pipe is empty, the host is slow, or others should have a turn; true in the last case. */
static bool read_output(struct exec *exec, struct output *output)
{
	size_t budget = READ_BUDGET;
	while (output->fd >= 0 && output->readable) {
		size_t room;
		uint8_t *at = stream_reserve(exec->stream, &room);
		if (!at)
			return false;
		if (exec->state == ENDED && room > output->remaining)
			room = output->remaining;
		ssize_t got = room ? read(output->fd, at, room) : 0;
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN) {
			output->readable = false;
			if (exec->state == ENDED)
				close_watched(&output->fd);
			return false;
		}
		if (got <= 0) {
			close_watched(&output->fd);
			return false;
		}
		stream_commit(exec->stream, output->record, (size_t)got);
		if (exec->state == ENDED)
			output->remaining -= (size_t)got;
		else if ((size_t)got < room && !output->hung_up && !exec->terminal)
			output->readable = false; /* Empty; the next write is a new edge. A terminal has more on the way. */
		budget = (size_t)got < budget ? budget - (size_t)got : 0;
		if (budget == 0)
			return true;
	}
	return false;
}

static void finish(struct exec *exec)
{
	uint8_t record[3] = { 0, (uint8_t)WEXITSTATUS(exec->status), 0 };
	if (WIFSIGNALED(exec->status)) {
		record[0] = 1;
		record[1] = (uint8_t)WTERMSIG(exec->status);
	}
	oom_kills_seen = oom_kills();
	if (exec->status != 0 && oom_kills_seen > exec->oom_kills_before)
		record[2] |= CT_EXIT_FLAG_OOM_KILLED;
	stream_record(exec->stream, CT_EXEC_OUTPUT_EXIT, record, sizeof record);
	stream_finish(exec->stream);
	exec->state = FINISHED;
}

bool exec_run(void)
{
	bool more = false;
	for (struct exec *exec = execs; exec; exec = exec->next) {
		if (!exec->stream || (exec->state != RUNNING && exec->state != ENDED))
			continue;
		for (int index = 0; index < 2; index++)
			more |= read_output(exec, &exec->outputs[index]);
		if (exec->state == ENDED && exec->outputs[0].fd < 0 && exec->outputs[1].fd < 0)
			finish(exec);
	}
	return more;
}

static void ended(struct exec *exec, int status)
{
	exec->status = status;
	if (!exec->stream) {
		exec_free(exec);
		return;
	}
	if (exec->spawn->error) {
		close_pipes(exec);
		send_failed(exec, exec->spawn->error, exec->spawn->stage);
		drop_setup(exec);
		return;
	}
	exec->state = ENDED;
	discard_input(exec);
	drop_setup(exec);
	for (int index = 0; index < 2; index++) {
		/* Only what is there now: a background child that goes on writing must not delay the end. */
		struct output *output = &exec->outputs[index];
		int waiting = 0;
		if (output->fd >= 0 && exec->terminal) {
			/* What is still on the way in it is not counted, but read() waits for it. */
			output->remaining = TERMINAL_BYTES;
			output->readable = true;
		} else if (output->fd >= 0 && ioctl(output->fd, FIONREAD, &waiting) == 0 && waiting > 0) {
			output->remaining = (size_t)waiting;
			output->readable = true;
		} else {
			close_watched(&output->fd);
		}
	}
}

void exec_reap(void)
{
	int status;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
		struct exec *exec = execs;
		while (exec && !(exec->state == RUNNING && exec->pid == pid))
			exec = exec->next;
		if (exec)
			ended(exec, status);
	}
}

void exec_kill_all(void)
{
	if (options->cgroup_fd >= 0) {
		if (file_write_at(options->cgroup_fd, "cgroup.kill", "1") == 0)
			return;
		report("cannot kill the job's cgroup: %s", strerror(errno));
	}
	for (struct exec *exec = execs; exec; exec = exec->next)
		if (exec->state == RUNNING)
			signal_group(exec, SIGKILL);
}
