/*
 * The workspace volume: vdb under dm-crypt with a key that exists only in this guest's memory, an ext4 whose blocks
 * the host laid out in advance, and the job's writable directories as bind mounts of its subdirectories.
 */
#ifndef CT_VOLUME_H
#define CT_VOLUME_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct job_user {
	uid_t uid;
	gid_t gid;
	char home[256];
};

struct volume_timing {
	uint64_t map_us;
	uint64_t blocks_us;
	uint64_t mount_us;
	uint64_t directories_us;
};

/*
 * In the initramfs, whose /dev must be mounted: opens the device and reads /volume.blocks into memory.
 */
void volume_prepare(void);

/*
 * In the final root, before the snapshot: does everything that volume_open would, with a throw-away key, and freezes
 * the result before any of it but the superblock has reached the disk. volume_open then only has to set the real key:
 * what is dirty in memory will be written under it. That takes most of the work off the way from a restored clone to
 * its first instruction. A failure here is only reported; volume_open starts from nothing then.
 */
void volume_mount_ahead(const char *cipher, const struct job_user *user);

/*
 * After the reseed: makes the key, and whatever volume_mount_ahead has not done for this cipher. `cipher` is
 * `<key bytes>:<cipher>` or `none`. Legal once.
 * On failure returns -1 with a text in `error`; the VM is of no use then.
 */
int volume_open(const char *cipher, const struct job_user *user, struct volume_timing *timing, char *error,
		size_t error_size);

/* Stops all I/O and wipes the key. Files still open on the volume only get errors afterwards. */
void volume_close(void);

/* Size and use of the file system in KiB; zeros while there is none. */
void volume_usage(uint64_t *used_kib, uint64_t *size_kib);

#endif
