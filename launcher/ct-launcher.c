/*
 * ct-launcher: the system calls that Node cannot make, in one small program that then gets out of the way.
 *
 *   ct-launcher exec [OPTION...] -- PROGRAM ARG...
 *       --lock PATH        hold an exclusive lock on PATH for the life of PROGRAM; exit 75 if it is held
 *       --memfd FD:BYTES   give PROGRAM a new memfd of that size as descriptor FD
 *       --keep N           close every descriptor above N
 *       --die-with-parent  SIGKILL PROGRAM when the process that started it ends
 *       --harden           no new privileges, no core dumps
 *       --cgroup FILE      join the cgroup whose cgroup.procs is FILE; may be repeated (one per v1 controller)
 *       --user UID:GID     become that user, without other groups
 *       --jail             see nothing but /usr (read-only), /dev/null, /dev/urandom and /proc/self as /self; no network, no System V objects, a host name of its own. Without root it makes a
 *                          user namespace in which the process is nobody; --user is then refused
 *       --user-namespace   root's jail, too, is in a user namespace: for a PROGRAM whose files only root may read, which
 *                          then keeps that user id but has none of its powers; instead of --user
 *       --device PATH      let the jail see this device, too; may be repeated
 *       --see PATH         let the jail see this file or directory, read-only; may be repeated
 *       --write DIRECTORY  let the jail see this directory as /out, and write there; a second one is /out2
 *   ct-launcher seal FD
 *       forbid any further write to, or resize of, the memfd FD (F_ADD_SEALS, fcntl(2))
 *   ct-launcher send-fd SOCKET FD TEXT
 *       send TEXT over the unix socket SOCKET with the descriptor FD attached (SCM_RIGHTS, unix(7))
 *   ct-launcher peer FD
 *       print user and process id of who connected to the unix socket FD (SO_PEERCRED, unix(7))
 *   ct-launcher blocks FD
 *       write the parts of the sparse file FD that were written, zeros included, to stdout: u64 offset, u32 length
 *       (big endian), bytes
 *
 * Everything it is told comes from the host daemon, never from a guest. Errors go to stderr; exit 71.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Where the new root is put together; any directory that exists everywhere does. */
#define JAIL_ROOT "/tmp"

enum { EXIT_LOCK_HELD = 75, EXIT_FAILED = 71, BLOCK_BYTES = 4096, CHUNK_BYTES = 1 << 16 };

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "ct-launcher: %s: %s\n", what, strerror(errno));
	exit(EXIT_FAILED);
}

static void __attribute__((noreturn)) usage(const char *what)
{
	fprintf(stderr, "ct-launcher: %s\n", what);
	exit(EXIT_FAILED);
}

/* A decimal number that fills the whole string up to `end_char`; anything else is a usage error. */
static unsigned long long number(const char *text, char end_char, const char **rest)
{
	char *end;

	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (end == text || *end != end_char || errno || text[0] == '-')
		usage("malformed number");
	if (rest)
		*rest = end + 1;
	return value;
}

/* The descriptor stays open in PROGRAM, and with it the lock: the kernel drops it when the process ends. */
static void hold_lock(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);

	if (fd < 0)
		fail(path);
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		if (errno == EWOULDBLOCK)
			exit(EXIT_LOCK_HELD);
		fail(path);
	}
}

static void give_memfd(const char *argument)
{
	const char *size;
	int target = (int)number(argument, ':', &size);
	unsigned long long bytes = number(size, '\0', NULL);
	int fd = memfd_create("ct-ram", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		fail("memfd");
	if (fd == target) {
		if (fcntl(fd, F_SETFD, 0))
			fail("memfd");
	} else if (dup2(fd, target) < 0) {
		fail("memfd");
	}
}

static void harden(void)
{
	/*
	 * One byte, not none: dumps to a program (core_pattern with a pipe) ignore every limit but 1, which the kernel takes
	 * for its own helpers' crashes (core(5), do_coredump()). A file of one byte is not written either.
	 */
	struct rlimit none = { 1, 1 };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("PR_SET_NO_NEW_PRIVS");
	if (setrlimit(RLIMIT_CORE, &none))
		fail("RLIMIT_CORE");
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		fail(path);
	close(fd);
}

/* uid_map(5) in user_namespaces(7): one id outside, `nobody` inside, so that exec drops all capabilities. */
static void enter_user_namespace(void)
{
	enum { NOBODY = 65534 };
	char map[64];
	uid_t uid = geteuid();
	gid_t gid = getegid();

	if (unshare(CLONE_NEWUSER))
		fail("user namespace");
	write_file("/proc/self/setgroups", "deny");
	snprintf(map, sizeof map, "%d %u 1", NOBODY, uid);
	write_file("/proc/self/uid_map", map);
	snprintf(map, sizeof map, "%d %u 1", NOBODY, gid);
	write_file("/proc/self/gid_map", map);
}

static void jail_path(char *out, size_t size, const char *path)
{
	if (snprintf(out, size, JAIL_ROOT "%s", path) >= (int)size)
		usage("a path is too long");
}

static void bind_mount(const char *from, const char *to, unsigned long flags)
{
	if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) ||
	    mount(NULL, to, NULL, MS_BIND | MS_REMOUNT | MS_NOSUID | flags, NULL))
		fail(from);
}

/*
 * Root makes a node of its own, which the user that PROGRAM becomes may open whatever group owns the original; in a user
 * namespace nodes cannot be made, and the caller's permissions count.
 */
static void add_device(const char *path, int in_user_namespace)
{
	char inside[PATH_MAX];
	struct stat status;
	int fd;

	jail_path(inside, sizeof inside, path);
	if (!in_user_namespace) {
		if (stat(path, &status) || mknod(inside, S_IFCHR | 0666, status.st_rdev) || chmod(inside, 0666))
			fail(path);
		return;
	}
	fd = open(inside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (fd < 0)
		fail(inside);
	close(fd);
	bind_mount(path, inside, MS_NOEXEC);
}

/* On a merged-/usr system these are links into /usr, and stay so; elsewhere they are directories of their own. */
static void add_library_directory(const char *path)
{
	char inside[PATH_MAX], target[PATH_MAX];
	ssize_t length = readlink(path, target, sizeof target - 1);

	jail_path(inside, sizeof inside, path);
	if (length > 0) {
		target[length] = '\0';
		if (symlink(target, inside))
			fail(inside);
	} else if (access(path, F_OK) == 0) {
		if (mkdir(inside, 0755))
			fail(inside);
		bind_mount(path, inside, MS_RDONLY | MS_NODEV);
	}
}

/*
 * A handle of what will be shown: opened before the jail covers JAIL_ROOT, below which it may lie, and in the jail's own
 * mount namespace, as a mount needs.
 */
static int open_path(const char *path)
{
	int fd = open(path, O_PATH | O_CLOEXEC);

	if (fd < 0)
		fail(path);
	return fd;
}

static void bind_handle(int fd, const char *inside, unsigned long flags)
{
	char from[64];

	snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
	bind_mount(from, inside, flags);
}

static void show(int path_fd, const char *path)
{
	char inside[PATH_MAX];
	struct stat status;

	if (fstat(path_fd, &status))
		fail(path);
	jail_path(inside, sizeof inside, path);
	for (char *slash = inside + sizeof JAIL_ROOT; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdir(inside, 0755) && errno != EEXIST)
			fail(inside);
		*slash = '/';
	}
	if (S_ISDIR(status.st_mode)) {
		if (mkdir(inside, 0755))
			fail(inside);
	} else {
		int fd = open(inside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);

		if (fd < 0)
			fail(inside);
		close(fd);
	}
	bind_handle(path_fd, inside, MS_RDONLY | MS_NODEV);
}

enum { LIST_ITEMS = 6, MAX_WRITABLE = 2 };

struct list {
	const char *items[LIST_ITEMS];
	int count;
};

static void append(struct list *list, const char *item)
{
	if (list->count == LIST_ITEMS)
		usage("an option is repeated too often");
	list->items[list->count++] = item;
}

static void jail(const struct list *devices, const struct list *seen, const struct list *writable,
		 int in_user_namespace)
{
	static const char *const libraries[] = { "/lib", "/lib64", "/bin", "/sbin" };
	static const char *const outs[MAX_WRITABLE] = { JAIL_ROOT "/out", JAIL_ROOT "/out2" };
	char self[64];
	int seen_fds[LIST_ITEMS], writable_fds[MAX_WRITABLE];
	mode_t mask = umask(0); /* a daemon's own would close the jail's directories to the user that PROGRAM becomes */

	if (in_user_namespace)
		enter_user_namespace();
	if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS))
		fail("namespaces");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		fail("jail");
	for (int i = 0; i < seen->count; i++)
		seen_fds[i] = open_path(seen->items[i]);
	for (int i = 0; i < writable->count; i++)
		writable_fds[i] = open_path(writable->items[i]);
	if (mount("jail", JAIL_ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k,nr_inodes=64"))
		fail("jail");
	if (mkdir(JAIL_ROOT "/usr", 0755) || mkdir(JAIL_ROOT "/dev", 0755) || mkdir(JAIL_ROOT "/self", 0755) ||
	    mkdir(JAIL_ROOT "/old", 0755))
		fail("jail");
	if (mount("devices", JAIL_ROOT "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=16k,nr_inodes=16"))
		fail("jail");
	bind_mount("/usr", JAIL_ROOT "/usr", MS_RDONLY | MS_NODEV);
	for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++)
		add_library_directory(libraries[i]);
	add_device("/dev/null", in_user_namespace);
	add_device("/dev/urandom", in_user_namespace);
	for (int i = 0; i < devices->count; i++)
		add_device(devices->items[i], in_user_namespace);
	for (int i = 0; i < seen->count; i++)
		show(seen_fds[i], seen->items[i]);
	for (int i = 0; i < writable->count; i++) {
		if (mkdir(outs[i], 0755))
			fail("jail");
		bind_handle(writable_fds[i], outs[i], MS_NODEV | MS_NOEXEC);
	}
	/*
	 * What /proc knows of this very process, which PROGRAM will be, without the rest. Not just its fd directory: the
	 * root of a mount keeps the owner it had, and PROGRAM will be another user.
	 */
	snprintf(self, sizeof self, "/proc/%d", getpid());
	if (mount(self, JAIL_ROOT "/self", NULL, MS_BIND, NULL))
		fail(self);
	if (syscall(SYS_pivot_root, JAIL_ROOT, JAIL_ROOT "/old") || chdir("/") || umount2("/old", MNT_DETACH) ||
	    rmdir("/old"))
		fail("pivot_root");
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL))
		fail("jail");
	umask(mask);
}

static void become(const char *argument)
{
	const char *group;
	uid_t uid = (uid_t)number(argument, ':', &group);
	gid_t gid = (gid_t)number(group, '\0', NULL);

	if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		fail("--user");
}

static int run(int argc, char **argv)
{
	struct list devices = { .count = 0 }, seen = { .count = 0 }, writable = { .count = 0 };
	const char *user = NULL;
	int jailed = 0, in_user_namespace = geteuid() != 0;
	int at = 0, keep = -1, die_with_parent = 0, hardened = 0;
	pid_t parent = getppid();

	for (; at < argc && strcmp(argv[at], "--"); at++) {
		const char *option = argv[at];

		if (!strcmp(option, "--die-with-parent")) {
			die_with_parent = 1;
		} else if (!strcmp(option, "--harden")) {
			hardened = 1;
		} else if (!strcmp(option, "--jail")) {
			jailed = 1;
		} else if (!strcmp(option, "--user-namespace")) {
			in_user_namespace = 1;
		} else if (at + 1 >= argc) {
			usage("an option lacks its argument");
		} else if (!strcmp(option, "--cgroup")) {
			write_file(argv[++at], "0");
		} else if (!strcmp(option, "--user")) {
			user = argv[++at];
		} else if (!strcmp(option, "--see")) {
			append(&seen, argv[++at]);
		} else if (!strcmp(option, "--device")) {
			append(&devices, argv[++at]);
		} else if (!strcmp(option, "--write")) {
			if (writable.count == MAX_WRITABLE)
				usage("--write is repeated too often");
			append(&writable, argv[++at]);
		} else if (!strcmp(option, "--lock")) {
			hold_lock(argv[++at]);
		} else if (!strcmp(option, "--memfd")) {
			give_memfd(argv[++at]);
		} else if (!strcmp(option, "--keep")) {
			keep = (int)number(argv[++at], '\0', NULL);
		} else {
			usage("unknown option");
		}
	}
	if (at + 1 >= argc)
		usage("no program given");
	if (keep >= 0 && close_range((unsigned int)keep + 1, ~0U, 0))
		fail("close_range");
	if (jailed)
		jail(&devices, &seen, &writable, in_user_namespace);
	if (user)
		become(user);
	if (hardened)
		harden();
	if (die_with_parent) {
		if (prctl(PR_SET_PDEATHSIG, SIGKILL))
			fail("PR_SET_PDEATHSIG");
		/* The parent may have ended before the line above; then no signal will come. */
		if (getppid() != parent)
			return EXIT_FAILED;
	}
	execv(argv[at + 1], argv + at + 1);
	fail(argv[at + 1]);
}

static int seal(int fd)
{
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		fail("F_ADD_SEALS");
	return 0;
}

static int send_fd(int socket_fd, int fd, char *text)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec data = { .iov_base = text, .iov_len = strlen(text) };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof control.bytes,
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	/* Node's sockets do not block; a full one would be a VMM that does not read. */
	struct pollfd ready = { .fd = socket_fd, .events = POLLOUT };

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	if (poll(&ready, 1, 5000) != 1 || sendmsg(socket_fd, &message, MSG_NOSIGNAL) != (ssize_t)strlen(text))
		fail("sendmsg");
	return 0;
}

static int peer(int fd)
{
	struct ucred credentials;
	socklen_t length = sizeof credentials;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length))
		fail("SO_PEERCRED");
	printf("%u %d\n", credentials.uid, credentials.pid);
	return fflush(stdout) ? EXIT_FAILED : 0;
}

static void put(const void *bytes, size_t length)
{
	if (fwrite(bytes, 1, length, stdout) != length)
		fail("stdout");
}

static int blocks(int fd)
{
	static unsigned char chunk[CHUNK_BYTES];
	struct stat status;
	off_t data = 0;

	if (fstat(fd, &status))
		fail("fstat");
	if (status.st_size % BLOCK_BYTES)
		usage("the file is not made of whole blocks");
	while (data < status.st_size && (data = lseek(fd, data, SEEK_DATA)) >= 0) {
		off_t hole = lseek(fd, data, SEEK_HOLE);

		if (hole < 0)
			fail("SEEK_HOLE");
		data -= data % BLOCK_BYTES;
		while (data < hole) {
			off_t left = hole - data + (BLOCK_BYTES - hole % BLOCK_BYTES) % BLOCK_BYTES;
			size_t length = left > CHUNK_BYTES ? CHUNK_BYTES : (size_t)left;

			if (pread(fd, chunk, length, data) != (ssize_t)length)
				fail("pread");
			uint64_t entry_offset = htobe64((uint64_t)data);
			uint32_t entry_length = htobe32((uint32_t)length);

			put(&entry_offset, sizeof entry_offset);
			put(&entry_length, sizeof entry_length);
			put(chunk, length);
			data += (off_t)length;
		}
	}
	if (data < 0 && errno != ENXIO) /* ENXIO: no data after this offset */
		fail("SEEK_DATA");
	if (fflush(stdout))
		fail("stdout");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc >= 3 && !strcmp(argv[1], "exec"))
		return run(argc - 2, argv + 2);
	if (argc == 3 && !strcmp(argv[1], "seal"))
		return seal((int)number(argv[2], '\0', NULL));
	if (argc == 5 && !strcmp(argv[1], "send-fd"))
		return send_fd((int)number(argv[2], '\0', NULL), (int)number(argv[3], '\0', NULL), argv[4]);
	if (argc == 3 && !strcmp(argv[1], "peer"))
		return peer((int)number(argv[2], '\0', NULL));
	if (argc == 3 && !strcmp(argv[1], "blocks"))
		return blocks((int)number(argv[2], '\0', NULL));
	usage("usage: ct-launcher exec|seal|send-fd|peer|blocks ...");
}
