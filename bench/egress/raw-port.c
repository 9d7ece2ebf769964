/*
 * /init of a VM that does nothing but move bytes over the port ct.control: the yardstick of `ct bench egress`.
 *
 * Says "ready\n". Then takes commands of 16 bytes: 'D' or 'U', seven zeros, u64 BE number of bytes. 'D': reads so many and says
 * "done\n"; 'U': writes so many.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

/* virtio_console hands out 4 KiB a read at most and takes 32 KiB a write. */
static char buffer[32768];

static void fail(const char *what)
{
	perror(what);
	pause();
	_exit(1);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void load_modules(void)
{
	DIR *directory = opendir("/modules");
	char *names[100];
	size_t count = 0;
	if (!directory)
		fail("/modules");
	for (struct dirent *entry; count < 100 && (entry = readdir(directory));)
		if (entry->d_name[0] != '.')
			names[count++] = strdup(entry->d_name);
	qsort(names, count, sizeof names[0], by_name);
	for (size_t index = 0; index < count; index++) {
		int fd = openat(dirfd(directory), names[index], O_RDONLY);
		syscall(SYS_finit_module, fd, "", 0); /* hardware that is not there is no fault */
		close(fd);
	}
	closedir(directory);
}

static int open_port(void)
{
	for (int attempt = 0; attempt < 1000; attempt++, usleep(10000)) {
		DIR *directory = opendir("/sys/class/virtio-ports");
		for (struct dirent *entry; directory && (entry = readdir(directory));) {
			char path[300], name[32] = "";
			snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
			int fd = open(path, O_RDONLY);
			if (fd < 0)
				continue;
			ssize_t length = read(fd, name, sizeof name - 1);
			close(fd);
			if (length <= 0 || strncmp(name, "ct.control\n", 11) != 0)
				continue;
			snprintf(path, sizeof path, "/dev/%s", entry->d_name);
			if ((fd = open(path, O_RDWR | O_NONBLOCK)) < 0)
				fail(path);
			return fd;
		}
		if (directory)
			closedir(directory);
	}
	fail("no port");
	return -1;
}

static void await_events(int port, short events)
{
	struct pollfd wait = {.fd = port, .events = events};
	/* With no host attached it reports POLLHUP all the time. */
	if (poll(&wait, 1, -1) < 0 || (wait.revents & POLLHUP))
		usleep(1000);
}

static void read_bytes(int port, uint64_t count, int keep)
{
	while (count > 0) {
		size_t want = count < sizeof buffer ? count : sizeof buffer;
		ssize_t length = read(port, keep ? buffer + 16 - count : buffer, want);
		if (length > 0)
			count -= (uint64_t)length;
		else if (length == 0 || errno == EAGAIN)
			await_events(port, POLLIN);
		else
			fail("read");
	}
}

static void write_bytes(int port, const char *from, uint64_t count)
{
	while (count > 0) {
		size_t want = count < sizeof buffer ? count : sizeof buffer;
		ssize_t length = write(port, from, want);
		if (length > 0) {
			count -= (uint64_t)length;
			from = from == buffer ? buffer : from + length;
		} else if (length == 0 || errno == EAGAIN) {
			await_events(port, POLLOUT);
		} else {
			fail("write");
		}
	}
}

int main(void)
{
	if (mount("dev", "/dev", "devtmpfs", 0, NULL) < 0 && errno != EBUSY)
		fail("/dev");
	if (mount("sys", "/sys", "sysfs", 0, NULL) < 0)
		fail("/sys");
	load_modules();
	int port = open_port();
	write_bytes(port, "ready\n", 6);
	for (;;) {
		uint64_t count;
		read_bytes(port, 16, 1);
		memcpy(&count, buffer + 8, sizeof count);
		count = be64toh(count);
		if (buffer[0] == 'D') {
			read_bytes(port, count, 0);
			write_bytes(port, "done\n", 5);
		} else {
			write_bytes(port, buffer, count);
		}
	}
}
