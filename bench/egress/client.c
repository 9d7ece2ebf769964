/*
 * The guest's side of `ct bench egress`: a TCP client as fast as they come, against the server of src/host/bench-egress-server.ts.
 *
 *     client ADDRESS PORT download BYTES | upload BYTES | latency COUNT | rate MILLISECONDS | many COUNT | idle COUNT
 *     client ADDRESS PORT yardstick NUMBER    waits while the server measures something else
 *
 * Prints lines `NAME VALUE` with times in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in server;
static char buffer[262144];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

static int dial(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0)
		fail("connect");
	return fd;
}

static void send_all(int fd, const char *data, uint64_t count)
{
	while (count > 0) {
		ssize_t length = write(fd, data, count < sizeof buffer ? count : sizeof buffer);
		if (length <= 0)
			fail("write");
		count -= (uint64_t)length;
		data = data == buffer ? buffer : data + length;
	}
}

static void receive(int fd, uint64_t count)
{
	while (count > 0) {
		ssize_t length = read(fd, buffer, count < sizeof buffer ? count : sizeof buffer);
		if (length <= 0)
			fail("read");
		count -= (uint64_t)length;
	}
}

/* An order to the server: a letter and a number, 16 characters. */
static void order(int fd, char what, uint64_t number)
{
	char text[17];
	snprintf(text, sizeof text, "%c%014llu\n", what, (unsigned long long)number);
	send_all(fd, text, 16);
}

static int64_t round_trip(void)
{
	int64_t began = now_us();
	int fd = dial();
	order(fd, 'D', 1);
	receive(fd, 1);
	int64_t took = now_us() - began;
	close(fd);
	return took;
}

static void transfer(char what, uint64_t count)
{
	int fd = dial();
	int64_t began = now_us();
	order(fd, what, count);
	if (what == 'D') {
		receive(fd, count);
	} else {
		send_all(fd, buffer, count);
		receive(fd, 1); /* all of it is there */
	}
	printf("%s %lld\n", what == 'D' ? "download" : "upload", (long long)(now_us() - began));
}

static int *open_many(int count)
{
	struct rlimit limit = {.rlim_cur = (rlim_t)count + 64, .rlim_max = (rlim_t)count + 64};
	struct rlimit old;
	getrlimit(RLIMIT_NOFILE, &old);
	limit.rlim_max = old.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		fail("too many connections for this system");
	int *fds = calloc((size_t)count, sizeof *fds);
	if (!fds)
		fail("calloc");
	for (int index = 0; index < count; index++)
		fds[index] = dial();
	return fds;
}

/* All are opened, then all ask, then all are answered. */
static void many(int count)
{
	int64_t began = now_us();
	int *fds = open_many(count);
	int lost = 0;
	for (int index = 0; index < count; index++)
		order(fds[index], 'D', 1024);
	for (int index = 0; index < count; index++) {
		uint64_t left = 1024;
		while (left > 0) {
			ssize_t length = read(fds[index], buffer, left);
			if (length <= 0)
				break;
			left -= (uint64_t)length;
		}
		lost += left > 0;
	}
	printf("many %lld\nlost %d\n", (long long)(now_us() - began), lost);
}

/* The server takes samples before and while the connections stand. */
static void idle(int count)
{
	int fd = dial();
	order(fd, 'S', 0);
	receive(fd, 1);
	int *fds = open_many(count);
	for (int index = 0; index < count; index++) {
		order(fds[index], 'D', 1);
		receive(fds[index], 1);
	}
	order(fd, 'S', (uint64_t)count);
	receive(fd, 1);
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	server.sin_family = AF_INET;
	server.sin_port = htons((uint16_t)atoi(argv[2]));
	if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
		return 2;
	const char *mode = argv[3];
	long long number = atoll(argv[4]);
	if (!strcmp(mode, "download")) {
		transfer('D', (uint64_t)number);
	} else if (!strcmp(mode, "upload")) {
		transfer('U', (uint64_t)number);
	} else if (!strcmp(mode, "latency")) {
		while (number-- > 0)
			printf("latency %lld\n", (long long)round_trip());
	} else if (!strcmp(mode, "rate")) {
		int64_t began = now_us(), until = began + number * 1000;
		int count = 0;
		for (; now_us() < until; count++)
			round_trip();
		printf("connections %d\nconnecting %lld\n", count, (long long)(now_us() - began));
	} else if (!strcmp(mode, "many")) {
		many((int)number);
	} else if (!strcmp(mode, "yardstick")) {
		int fd = dial();
		order(fd, 'R', (uint64_t)number);
		receive(fd, 1);
	} else if (!strcmp(mode, "idle")) {
		idle((int)number);
	} else {
		return 2;
	}
	return 0;
}
