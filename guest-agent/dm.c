/* Device-mapper ioctls: see dm.h. One buffer per call: struct dm_ioctl, then a target or message. */
#include "dm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* linux/miscdevice.h: MISC_MAJOR and MAPPER_CTRL_MINOR. */
#define CONTROL_DEVICE makedev(10, 236)

static int control_fd = -1;

/* The longest parameters are dm-crypt's: a 64-byte key in hex, a cipher, a device, options. */
union request {
	struct dm_ioctl head;
	uint8_t bytes[sizeof(struct dm_ioctl) + sizeof(struct dm_target_spec) + 1024];
};

int dm_open(void)
{
	control_fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (control_fd < 0 && errno == ENOENT) {
		mkdir("/dev/mapper", 0700);
		if (mknod("/dev/mapper/control", S_IFCHR | 0600, CONTROL_DEVICE) < 0 && errno != EEXIST)
			return -errno;
		control_fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	}
	return control_fd < 0 ? -errno : 0;
}

static int call(unsigned long number, union request *request, const char *name, uint32_t flags)
{
	struct dm_ioctl *head = &request->head;
	head->version[0] = DM_VERSION_MAJOR;
	head->data_size = sizeof request->bytes;
	head->data_start = sizeof *head;
	head->flags = flags;
	snprintf(head->name, sizeof head->name, "%s", name);
	int result = ioctl(control_fd, number, request) < 0 ? -errno : 0;
	return result;
}

int dm_create(const char *name, unsigned *minor_number)
{
	union request request = { 0 };
	int result = call(DM_DEV_CREATE, &request, name, 0);
	if (result == 0)
		*minor_number = minor(request.head.dev);
	return result;
}

int dm_load(const char *name, const char *target, uint64_t sectors, const char *parameters, bool read_only,
	    bool secret)
{
	union request request = { 0 };
	struct dm_target_spec *spec = (struct dm_target_spec *)(request.bytes + sizeof request.head);
	size_t length = strlen(parameters) + 1;
	size_t offset = sizeof request.head + sizeof *spec;
	if (length > sizeof request.bytes - offset)
		return -E2BIG;
	request.head.target_count = 1;
	spec->length = sectors;
	snprintf(spec->target_type, sizeof spec->target_type, "%s", target);
	memcpy(request.bytes + offset, parameters, length);
	int result = call(DM_TABLE_LOAD, &request, name,
			  (read_only ? DM_READONLY_FLAG : 0) | (secret ? DM_SECURE_DATA_FLAG : 0));
	explicit_bzero(&request, sizeof request);
	return result;
}

int dm_resume(const char *name, bool read_only)
{
	union request request = { 0 };
	return call(DM_DEV_SUSPEND, &request, name, read_only ? DM_READONLY_FLAG : 0);
}

int dm_suspend_now(const char *name)
{
	union request request = { 0 };
	return call(DM_DEV_SUSPEND, &request, name, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG);
}

int dm_message(const char *name, const char *message, bool secret)
{
	union request request = { 0 };
	size_t offset = sizeof request.head + offsetof(struct dm_target_msg, message);
	size_t length = strlen(message) + 1;
	if (length > sizeof request.bytes - offset)
		return -E2BIG;
	memcpy(request.bytes + offset, message, length);
	int result = call(DM_TARGET_MSG, &request, name, secret ? DM_SECURE_DATA_FLAG : 0);
	explicit_bzero(&request, sizeof request);
	return result;
}

int dm_remove(const char *name)
{
	union request request = { 0 };
	return call(DM_DEV_REMOVE, &request, name, 0);
}
