/* Small files as the kernel and the agent exchange them: written or read in one system call each. */
#ifndef CT_FILES_H
#define CT_FILES_H

#include <sys/types.h>

/* Files bound over the image's /etc/hostname, /etc/hosts, ... : the image itself cannot be written. */
#define FILES_DIRECTORY "/run/ct/etc"

/* Replaces the content of a file, in place, so that bind mounts of it show the change. Returns 0 or -1 (errno). */
int file_write(const char *path, const void *data, size_t length);
int file_write_at(int directory, const char *path, const char *text);

/* Reads at most size - 1 bytes and ends them with a NUL. Returns the number of bytes or -1 (errno). */
ssize_t file_read_at(int directory, const char *path, char *text, size_t size);

#endif
