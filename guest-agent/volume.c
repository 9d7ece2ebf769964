/* The workspace volume: see volume.h. */
#include "volume.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "console.h"
#include "dm.h"
#include "files.h"
#include "records.h"

#define MAPPING "ct-workspace"
#define MAX_KEY_BYTES 64
/* Root-only place where the volume is mounted for the moment it takes to bind its directories. */
#define STAGING "/run/ct/volume"
/* src/vmm/volume.ts bounds the blocks of a volume to 16 MiB; more is a broken initramfs. */
#define MAX_BLOCKS_BYTES (16L << 20)
#define BLOCK_BYTES 4096

/* devtmpfs as the initramfs mounted it, which no path leads to once the root is switched. */
static int devices_fd = -1;
static int backing_fd = -1;
static uint64_t backing_bytes;
static unsigned mapping_minor;
static bool mapping_made;
/* Kept: pages of the template, which its clones share. */
static uint8_t *blocks;
static size_t blocks_bytes;
/* Keeps the block device's page cache alive from the writing of the blocks to the mount, and ever after. */
static int device_fd = -1;
static int root_fd = -1;
static bool encrypted;
/* The cipher that volume_mount_ahead has prepared, or "". */
static char ahead_cipher[128];

void volume_prepare(void)
{
	devices_fd = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
	backing_fd = open("/dev/vdb", O_RDWR | O_CLOEXEC);
	if (devices_fd < 0)
		fatal("cannot open /dev: %s", strerror(errno));
	if (backing_fd < 0) {
		/* A machine without a volume still becomes ready; identity says what is missing. */
		report("no workspace volume: /dev/vdb: %s", strerror(errno));
		return;
	}
	if (ioctl(backing_fd, BLKGETSIZE64, &backing_bytes) < 0)
		fatal("cannot get the size of /dev/vdb: %s", strerror(errno));

	int fd = open("/volume.blocks", O_RDONLY | O_CLOEXEC);
	struct stat status;
	if (fd < 0 || fstat(fd, &status) < 0)
		fatal("cannot open /volume.blocks: %s", strerror(errno));
	if (status.st_size > MAX_BLOCKS_BYTES)
		fatal("/volume.blocks has %lld bytes; the limit is %ld", (long long)status.st_size, MAX_BLOCKS_BYTES);
	blocks_bytes = (size_t)status.st_size;
	blocks = malloc(blocks_bytes + 1);
	if (!blocks)
		fatal("no memory for /volume.blocks");
	for (size_t have = 0; have < blocks_bytes;) {
		ssize_t got = read(fd, blocks + have, blocks_bytes - have);
		if (got <= 0)
			fatal("cannot read /volume.blocks");
		have += (size_t)got;
	}
	close(fd);

	int result = dm_create(MAPPING, &mapping_minor);
	if (result < 0)
		fatal("cannot create the device-mapper device for the volume: %s", strerror(-result));
	mapping_made = true;
}

static int fail(char *error, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int fail(char *error, size_t size, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(error, size, format, arguments);
	va_end(arguments);
	return -1;
}

/* `<key bytes>:<cipher>`; the cipher goes into a device-mapper table, so only what cannot end its field. */
static int parse_cipher(const char *text, size_t *key_bytes, const char **cipher)
{
	char *end;
	unsigned long number = strtoul(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end != ':' || number < 16 || number > MAX_KEY_BYTES)
		return -1;
	*key_bytes = number;
	*cipher = end + 1;
	if (**cipher == '\0' || strlen(*cipher) > 64)
		return -1;
	for (const char *at = *cipher; *at; at++)
		if (!isalnum((unsigned char)*at) && !strchr("-,()_:", *at))
			return -1;
	return 0;
}

/* Draws a key and writes it as hex. The caller wipes `hex`. */
static int draw_key(size_t key_bytes, char hex[2 * MAX_KEY_BYTES + 1])
{
	static const char digits[] = "0123456789abcdef";
	uint8_t key[MAX_KEY_BYTES];
	if (getrandom(key, key_bytes, 0) != (ssize_t)key_bytes)
		return -1;
	for (size_t index = 0; index < key_bytes; index++) {
		hex[2 * index] = digits[key[index] >> 4];
		hex[2 * index + 1] = digits[key[index] & 15];
	}
	hex[2 * key_bytes] = '\0';
	explicit_bzero(key, sizeof key);
	return 0;
}

static int map(const char *text, char *error, size_t error_size)
{
	size_t key_bytes;
	const char *cipher;
	char key[2 * MAX_KEY_BYTES + 1];
	char table[512];
	struct stat status;
	if (parse_cipher(text, &key_bytes, &cipher) < 0)
		return fail(error, error_size, "not a volume cipher: %.100s", text);
	if (fstat(backing_fd, &status) < 0 || draw_key(key_bytes, key) < 0)
		return fail(error, error_size, "making the volume key: %s", strerror(errno));
	/*
	 * 4096-byte sectors: an eighth of the cipher calls. Without the work queues a bio is encrypted where it is
	 * submitted, which saves two context switches per request.
	 */
	snprintf(table, sizeof table,
		 "%s %s 0 %u:%u 0 4 allow_discards sector_size:4096 no_read_workqueue no_write_workqueue", cipher, key,
		 major(status.st_rdev), minor(status.st_rdev));
	int result = dm_load(MAPPING, "crypt", backing_bytes / 512, table, false, true);
	explicit_bzero(key, sizeof key);
	explicit_bzero(table, sizeof table);
	if (result < 0)
		return fail(error, error_size, "dm-crypt with %s: %s", text, strerror(-result));
	result = dm_resume(MAPPING, false);
	if (result < 0)
		return fail(error, error_size, "starting dm-crypt: %s", strerror(-result));
	encrypted = true;
	return 0;
}

/* Puts a new key under the frozen file system and lets it go. */
static int set_key(const char *text, char *error, size_t error_size)
{
	size_t key_bytes;
	const char *cipher;
	char key[2 * MAX_KEY_BYTES + 1];
	char message[sizeof key + 8];
	if (parse_cipher(text, &key_bytes, &cipher) < 0 || draw_key(key_bytes, key) < 0)
		return fail(error, error_size, "making the volume key: %s", strerror(errno));
	memcpy(message, "key set ", 8);
	memcpy(message + 8, key, sizeof key);
	int result = dm_message(MAPPING, message, true);
	explicit_bzero(key, sizeof key);
	explicit_bzero(message, sizeof message);
	if (result == 0)
		result = dm_resume(MAPPING, false);
	if (result < 0)
		return fail(error, error_size, "setting the volume key: %s", strerror(-result));
	encrypted = true;
	return 0;
}

/* /volume.blocks: u64 offset, u32 length, bytes, until end of file; docs/guest-link.md. */
static int write_blocks(char *error, size_t error_size)
{
	size_t at = 0;
	while (at < blocks_bytes) {
		if (blocks_bytes - at < 12)
			return fail(error, error_size, "/volume.blocks is cut short");
		uint64_t offset = get_u64(blocks + at);
		uint32_t length = get_u32(blocks + at + 8);
		at += 12;
		if (length > blocks_bytes - at || offset > backing_bytes || length > backing_bytes - offset)
			return fail(error, error_size, "/volume.blocks does not fit the volume");
		/* Into the page cache only: the mount finds the blocks there, and write-back encrypts them later. */
		if (pwrite(device_fd, blocks + at, length, (off_t)offset) != (ssize_t)length)
			return fail(error, error_size, "writing the volume's blocks: %s", strerror(errno));
		at += length;
	}
	return 0;
}

struct place {
	const char *name;
	const char *target;
	mode_t mode;
	bool owned_by_user;
};

static const struct place places[] = {
	{ "workspace", "/workspace", 0755, true },
	{ "home", "/home", 0755, false },
	{ "tmp", "/tmp", 01777, false },
	{ "var-tmp", "/var/tmp", 01777, false },
};

/* The user's home and its parents below /home; a home elsewhere is the image's own affair. */
static int make_home(const struct job_user *user)
{
	if (strncmp(user->home, "/home/", 6) != 0 || strstr(user->home, "/../") || user->home[6] == '\0')
		return 0;
	char path[sizeof user->home];
	snprintf(path, sizeof path, "%s", user->home + 1);
	for (char *slash = path + strlen("home/"); (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdirat(root_fd, path, 0755) < 0 && errno != EEXIST)
			return -1;
		*slash = '/';
	}
	if (mkdirat(root_fd, path, 0700) < 0 && errno != EEXIST)
		return -1;
	return fchownat(root_fd, path, user->uid, user->gid, AT_SYMLINK_NOFOLLOW);
}

static int make_directories(const struct job_user *user, char *error, size_t error_size)
{
	for (size_t index = 0; index < sizeof places / sizeof places[0]; index++) {
		const struct place *place = &places[index];
		char path[64];
		snprintf(path, sizeof path, STAGING "/%s", place->name);
		/* The process's umask is 022, which would take bits from /tmp. */
		if (mkdir(path, place->mode) < 0 || ((place->mode & 022) && chmod(path, place->mode) < 0) ||
		    (place->owned_by_user && chown(path, user->uid, user->gid) < 0))
			return fail(error, error_size, "making %s on the volume: %s", place->name, strerror(errno));
		if (mount(path, place->target, NULL, MS_BIND, NULL) < 0)
			return fail(error, error_size, "mounting %s: %s", place->target, strerror(errno));
	}
	if (make_home(user) < 0)
		return fail(error, error_size, "making %s: %s", user->home, strerror(errno));
	return 0;
}

static int build(const char *cipher, const struct job_user *user, struct volume_timing *timing, char *error,
		 size_t error_size)
{
	uint64_t start = now_us();
	char device[32] = "vdb";
	if (strcmp(cipher, "none") == 0) {
		/* The mapping has claimed the device. */
		dm_remove(MAPPING);
	} else {
		if (map(cipher, error, error_size) < 0)
			return -1;
		snprintf(device, sizeof device, "dm-%u", mapping_minor);
	}
	device_fd = openat(devices_fd, device, O_RDWR | O_CLOEXEC);
	if (device_fd < 0)
		return fail(error, error_size, "opening the volume: %s", strerror(errno));
	uint64_t mapped = now_us();

	if (write_blocks(error, error_size) < 0)
		return -1;
	uint64_t written = now_us();

	/*
	 * Nothing on the volume outlives the VM: no barriers, no background initialisation of inode tables. The mount
	 * flags are inherited by the bind mounts.
	 */
	int result = fchdir(devices_fd); /* No path leads to the device any more. */
	if (result == 0)
		result = mount(device, STAGING, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, "noinit_itable,no_prefetch_block_bitmaps,nobarrier,noquota");
	if (chdir("/") < 0 || result < 0)
		return fail(error, error_size, "mounting the volume: %s", strerror(errno));
	root_fd = open(STAGING, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root_fd < 0)
		return fail(error, error_size, "opening the volume: %s", strerror(errno));
	uint64_t mounted = now_us();

	if (make_directories(user, error, error_size) < 0)
		return -1;
	/* Only the bind mounts stay visible; root_fd keeps the rest alive. */
	if (umount2(STAGING, MNT_DETACH) < 0)
		return fail(error, error_size, "hiding the volume: %s", strerror(errno));
	timing->map_us = mapped - start;
	timing->blocks_us = written - mapped;
	timing->mount_us = mounted - written;
	timing->directories_us = now_us() - mounted;
	return 0;
}

/* Undoes `build` as far as it came. */
static void unbuild(void)
{
	for (size_t index = 0; index < sizeof places / sizeof places[0]; index++)
		umount2(places[index].target, MNT_DETACH);
	umount2(STAGING, MNT_DETACH);
	if (root_fd >= 0)
		close(root_fd);
	if (device_fd >= 0)
		close(device_fd);
	root_fd = device_fd = -1;
	encrypted = false;
}

/* Documentation/block/stat.rst: sectors read and written so far. */
static int device_traffic(uint64_t *read_sectors, uint64_t *written_sectors)
{
	char path[64], text[256];
	unsigned long long reads = 0, writes = 0;
	snprintf(path, sizeof path, "/sys/block/dm-%u/stat", mapping_minor);
	if (file_read_at(AT_FDCWD, path, text, sizeof text) < 0 ||
	    sscanf(text, "%*u %*u %llu %*u %*u %*u %llu", &reads, &writes) != 2)
		return -1;
	*read_sectors = reads;
	*written_sectors = writes;
	return 0;
}

/*
 * The next key can be put under the file system only if nothing that is in memory depends on the disk: not one block
 * read from it, and none written but the superblock, which is made dirty again here. Then suspending keeps it so: the
 * rest cannot become clean before it has been written, and nothing is written until the key is set.
 */
static int freeze(char *error, size_t error_size)
{
	uint8_t superblock[BLOCK_BYTES];
	uint64_t read_sectors = 0, written_sectors = 0;
	if (pread(device_fd, superblock, sizeof superblock, 0) != sizeof superblock ||
	    pwrite(device_fd, superblock, sizeof superblock, 0) != sizeof superblock)
		return fail(error, error_size, "the superblock: %s", strerror(errno));
	int result = dm_suspend_now(MAPPING);
	if (result < 0)
		return fail(error, error_size, "suspending: %s", strerror(-result));
	if (device_traffic(&read_sectors, &written_sectors) < 0 || read_sectors != 0 ||
	    written_sectors > 2 * BLOCK_BYTES / 512)
		return fail(error, error_size, "the device has been used: %llu sectors read, %llu written",
			    (unsigned long long)read_sectors, (unsigned long long)written_sectors);
	return 0;
}

void volume_mount_ahead(const char *cipher, const struct job_user *user)
{
	char error[256];
	struct volume_timing timing;
	if (!mapping_made || strcmp(cipher, "none") == 0)
		return;
	if (build(cipher, user, &timing, error, sizeof error) == 0) {
		if (freeze(error, sizeof error) == 0) {
			snprintf(ahead_cipher, sizeof ahead_cipher, "%s", cipher);
			return;
		}
		/* Closing the device would wait for what is dirty. */
		dm_resume(MAPPING, false);
	}
	report("the volume could not be mounted ahead: %s", error);
	unbuild();
}

int volume_open(const char *cipher, const struct job_user *user, struct volume_timing *timing, char *error,
		size_t error_size)
{
	if (!mapping_made)
		return fail(error, error_size, "there is no /dev/vdb");
	if (ahead_cipher[0]) {
		if (strcmp(cipher, ahead_cipher) == 0) {
			uint64_t start = now_us();
			memset(timing, 0, sizeof *timing);
			int result = set_key(cipher, error, error_size);
			timing->map_us = now_us() - start;
			return result;
		}
		int result = dm_resume(MAPPING, false);
		if (result < 0)
			return fail(error, error_size, "resuming the volume: %s", strerror(-result));
		unbuild();
	}
	return build(cipher, user, timing, error, error_size);
}

void volume_close(void)
{
	if (!encrypted)
		return;
	/*
	 * No clean unmount: that would write what nobody will ever read. Suspending first, because dm-crypt refuses to
	 * touch its key while I/O runs.
	 */
	int result = dm_suspend_now(MAPPING);
	if (result == 0)
		result = dm_message(MAPPING, "key wipe", false);
	if (result < 0)
		report("cannot wipe the volume key: %s", strerror(-result));
	encrypted = false;
}

void volume_usage(uint64_t *used_kib, uint64_t *size_kib)
{
	struct statfs status;
	*used_kib = *size_kib = 0;
	if (root_fd < 0 || fstatfs(root_fd, &status) < 0)
		return;
	uint64_t unit = (uint64_t)status.f_bsize;
	*size_kib = status.f_blocks * unit / 1024;
	*used_kib = (status.f_blocks - status.f_bfree) * unit / 1024;
}
