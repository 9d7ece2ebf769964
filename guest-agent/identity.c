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

int identity_record(struct identity_request *request, uint8_t type, const uint8_t *payload, size_t length)
{
	switch (type) {
	case CT_IDENTITY_RECORD_ENTROPY:
		if (request->entropy_bytes || length < MIN_ENTROPY_BYTES || length > MAX_ENTROPY_BYTES)
			return -1;
		memcpy(request->entropy, payload, length);
		request->entropy_bytes = length;
		return 0;
	case CT_IDENTITY_RECORD_TIME:
		if (request->time_ns || length != 8)
			return -1;
		request->time_ns = get_u64(payload);
		return 0;
	case CT_IDENTITY_RECORD_HOSTNAME:
		if (request->hostname[0] || length < 1 || length >= sizeof request->hostname)
			return -1;
		for (size_t index = 0; index < length; index++) {
			uint8_t byte = payload[index];
			if (!(byte >= 'a' && byte <= 'z') && !(byte >= '0' && byte <= '9') && byte != '-')
				return -1;
		}
		memcpy(request->hostname, payload, length);
		return 0;
	case CT_IDENTITY_RECORD_VOLUME:
		if (request->volume[0] || length < 1 || length >= sizeof request->volume || memchr(payload, 0, length))
			return -1;
		memcpy(request->volume, payload, length);
		return 0;
	default:
		return -1;
	}
}

int identity_complete(const struct identity_request *request)
{
	return request->entropy_bytes && request->time_ns && request->hostname[0] && request->volume[0];
}

static int reseed(const struct identity_request *request)
{
	struct {
		struct rand_pool_info head;
		uint8_t bytes[MAX_ENTROPY_BYTES];
	} pool = { .head = { .entropy_count = (int)request->entropy_bytes * 8, .buf_size = (int)request->entropy_bytes } };
	memcpy(pool.bytes, request->entropy, request->entropy_bytes);
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	int result = -1;
	if (fd >= 0) {
		if (ioctl(fd, RNDADDENTROPY, &pool) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0)
			result = 0;
		close(fd);
	}
	explicit_bzero(&pool, sizeof pool);
	return result;
}

static int write_names(const char *hostname)
{
	char text[160];
	uint8_t random[32];
	if (sethostname(hostname, strlen(hostname)) < 0)
		return -1;
	int length = snprintf(text, sizeof text, "%s\n", hostname);
	if (file_write(FILES_DIRECTORY "/hostname", text, (size_t)length) < 0)
		return -1;
	length = snprintf(text, sizeof text, "127.0.0.1\tlocalhost %s\n::1\tlocalhost\n", hostname);
	if (file_write(FILES_DIRECTORY "/hosts", text, (size_t)length) < 0)
		return -1;

	if (getrandom(random, sizeof random, 0) != sizeof random)
		return -1;
	length = 0;
	for (int index = 0; index < 16; index++)
		length += snprintf(text + length, sizeof text - (size_t)length, "%02x", random[index]);
	text[length++] = '\n';
	if (file_write(FILES_DIRECTORY "/machine-id", text, (size_t)length) < 0)
		return -1;

	/* RFC 9562, version 4: the shape that readers of boot_id expect. */
	uint8_t *uuid = random + 16;
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
	length = 0;
	for (int index = 0; index < 16; index++)
		length += snprintf(text + length, sizeof text - (size_t)length, "%s%02x",
				   index == 4 || index == 6 || index == 8 || index == 10 ? "-" : "", uuid[index]);
	text[length++] = '\n';
	return file_write(FILES_DIRECTORY "/boot_id", text, (size_t)length);
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
