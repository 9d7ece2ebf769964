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
 * Before the snapshot: what does not depend on the key. Reads /volume.blocks into memory; legal while the initramfs
 * is still the root and its /dev is mounted.
 */
void volume_prepare(void);

/*
 * After the reseed: makes the key, maps, lays out, mounts. `cipher` is `<key bytes>:<cipher>` or `none`. Legal once.
 * On failure returns -1 with a text in `error`; the VM is of no use then.
 */
int volume_open(const char *cipher, const struct job_user *user, struct volume_timing *timing, char *error,
		size_t error_size);

/* Stops all I/O and wipes the key. Files still open on the volume only get errors afterwards. */
void volume_close(void);

/* Size and use of the file system in KiB; zeros while there is none. */
void volume_usage(uint64_t *used_kib, uint64_t *size_kib);

#endif
