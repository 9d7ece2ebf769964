/* Device-mapper through its ioctls (linux/dm-ioctl.h): no dmsetup, no library, no process. */
#ifndef CT_DM_H
#define CT_DM_H

#include <stdbool.h>
#include <stdint.h>

/* Opens /dev/mapper/control, creating the node if devtmpfs did not. Returns 0 or -errno. */
int dm_open(void);

/* Each returns 0 or -errno. `parameters` is wiped from every buffer afterwards if `secret`. */
int dm_create(const char *name, unsigned *minor);
int dm_load(const char *name, const char *target, uint64_t sectors, const char *parameters, bool read_only,
	    bool secret);
int dm_resume(const char *name, bool read_only);
/* Stops I/O without waiting for what is queued or dirty. */
int dm_suspend_now(const char *name);
int dm_message(const char *name, const char *message, bool secret);
int dm_remove(const char *name);

#endif
