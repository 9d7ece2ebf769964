/*
 * Identity of a clone: see identity.h. The order matters: nothing random may be drawn before the kernel's generator
 * has been reseeded, because all clones of a template would draw the same.
 */
#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "console.h"
#include "files.h"
#include "protocol.h"
#include "records.h"

static const char *const name_files[] = { "hostname", "hosts", "machine-id", "boot_id" };
static int name_fds[4] = { -1, -1, -1, -1 };
static int random_fd = -1;

/*
 * Right after a restore every code path is slow, so the files (all but hosts are empty until then) are opened here and
 * get one write each.
 */
void identity_prepare(void)
{
	for (int index = 0; index < 4; index++) {
		char path[64];
		snprintf(path, sizeof path, FILES_DIRECTORY "/%s", name_files[index]);
		name_fds[index] = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
		if (name_fds[index] < 0)
			fatal("cannot open %s: %s", path, strerror(errno));
	}
	random_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (random_fd < 0)
		fatal("cannot open /dev/urandom: %s", strerror(errno));
}

static int reseed(const struct identity_request *request)
{
	struct {
		struct rand_pool_info head;
		uint8_t bytes[MAX_ENTROPY_BYTES];
	} pool = { .head = { .entropy_count = (int)request->entropy_bytes * 8, .buf_size = (int)request->entropy_bytes } };
	memcpy(pool.bytes, request->entropy, request->entropy_bytes);
	int result = ioctl(random_fd, RNDADDENTROPY, &pool) == 0 && ioctl(random_fd, RNDRESEEDCRNG) == 0 ? 0 : -1;
	explicit_bzero(&pool, sizeof pool);
	return result;
}

static int write_name(int file, const char *text, size_t length)
{
	return write(name_fds[file], text, length) == (ssize_t)length ? 0 : -1;
}

static size_t put_hex(char *at, const uint8_t *bytes, size_t length)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t index = 0; index < length; index++) {
		at[2 * index] = digits[bytes[index] >> 4];
		at[2 * index + 1] = digits[bytes[index] & 15];
	}
	return 2 * length;
}

static int write_names(const char *hostname)
{
	char text[160];
	uint8_t random[32];
	size_t host_length = strlen(hostname);
	if (sethostname(hostname, host_length) < 0 || getrandom(random, sizeof random, 0) != sizeof random)
		return -1;

	/* "127.0.0.1\t<name>\n" for hosts, and from behind the tab for hostname. */
	size_t length = strlen("127.0.0.1\t");
	memcpy(text, "127.0.0.1\t", length);
	memcpy(text + length, hostname, host_length);
	text[length + host_length] = '\n';
	if (write_name(0, text + length, host_length + 1) < 0 || write_name(1, text, length + host_length + 1) < 0)
		return -1;

	length = put_hex(text, random, 16);
	text[length++] = '\n';
	if (write_name(2, text, length) < 0)
		return -1;

	/* RFC 9562, version 4: the shape that readers of boot_id expect. */
	uint8_t *uuid = random + 16;
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
	static const uint8_t groups[] = { 4, 2, 2, 2, 6 };
	length = 0;
	for (size_t group = 0; group < sizeof groups; group++) {
		length += put_hex(text + length, uuid, groups[group]);
		text[length++] = group + 1 < sizeof groups ? '-' : '\n';
		uuid += groups[group];
	}
	return write_name(3, text, length);
}

int identity_apply(struct identity_request *request, const struct job_user *user, char *text, size_t text_size)
{
	uint64_t start = now_us();
	int result = reseed(request);
	explicit_bzero(request->entropy, sizeof request->entropy);
	if (result < 0) {
		snprintf(text, text_size, "reseeding the kernel: %s\n", strerror(errno));
		return -1;
	}
	struct timespec time = { .tv_sec = (time_t)(request->time_ns / 1000000000),
				 .tv_nsec = (long)(request->time_ns % 1000000000) };
	if (clock_settime(CLOCK_REALTIME, &time) < 0) {
		snprintf(text, text_size, "setting the clock: %s\n", strerror(errno));
		return -1;
	}
	uint64_t seeded = now_us();
	if (write_names(request->hostname) < 0) {
		snprintf(text, text_size, "setting the names: %s\n", strerror(errno));
		return -1;
	}
	uint64_t named = now_us();

	struct volume_timing timing;
	char reason[256];
	if (volume_open(request->volume, user, &timing, reason, sizeof reason) < 0) {
		snprintf(text, text_size, "%s\n", reason);
		report("identity failed: %s", reason);
		return -1;
	}
	snprintf(text, text_size,
		 "entropy_us=%llu\nnames_us=%llu\nvolume_map_us=%llu\nvolume_blocks_us=%llu\nvolume_mount_us=%llu\n"
		 "volume_directories_us=%llu\ntotal_us=%llu\n",
		 (unsigned long long)(seeded - start), (unsigned long long)(named - seeded),
		 (unsigned long long)timing.map_us, (unsigned long long)timing.blocks_us,
		 (unsigned long long)timing.mount_us, (unsigned long long)timing.directories_us,
		 (unsigned long long)(now_us() - start));
	return 0;
}
