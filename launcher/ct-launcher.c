/*
 * ct-launcher: the system calls that Node cannot make, in one small program that then gets out of the way.
 *
 *   ct-launcher exec [OPTION...] -- PROGRAM ARG...
 *       --lock PATH        hold an exclusive lock on PATH for the life of PROGRAM; exit 75 if it is held
 *       --memfd FD:BYTES   give PROGRAM a new memfd of that size as descriptor FD
 *       --keep N           close every descriptor above N
 *       --die-with-parent  SIGKILL PROGRAM when the process that started it ends
 *       --harden           no new privileges, no core dumps, no dumping of memory by other processes
 *   ct-launcher seal FD
 *       forbid any further write to, or resize of, the memfd FD (F_ADD_SEALS, fcntl(2))
 *   ct-launcher send-fd SOCKET FD TEXT
 *       send TEXT over the unix socket SOCKET with the descriptor FD attached (SCM_RIGHTS, unix(7))
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
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

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
	struct rlimit none = { 0, 0 };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("PR_SET_NO_NEW_PRIVS");
	if (setrlimit(RLIMIT_CORE, &none))
		fail("RLIMIT_CORE");
}

static int run(int argc, char **argv)
{
	int at = 0, keep = -1, die_with_parent = 0, hardened = 0;
	pid_t parent = getppid();

	for (; at < argc && strcmp(argv[at], "--"); at++) {
		const char *option = argv[at];

		if (!strcmp(option, "--die-with-parent")) {
			die_with_parent = 1;
		} else if (!strcmp(option, "--harden")) {
			hardened = 1;
		} else if (at + 1 >= argc) {
			usage("an option lacks its argument");
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
	if (argc == 3 && !strcmp(argv[1], "blocks"))
		return blocks((int)number(argv[2], '\0', NULL));
	usage("usage: ct-launcher exec|seal|send-fd|blocks ...");
}
