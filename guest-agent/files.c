/* Small files: see files.h. */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int write_once(int fd, const void *data, size_t length)
{
	if (fd < 0)
		return -1;
	ssize_t written = write(fd, data, length);
	int saved = written < 0 ? errno : EIO;
	close(fd);
	errno = saved;
	return written == (ssize_t)length ? 0 : -1;
}

int file_write(const char *path, const void *data, size_t length)
{
	return write_once(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0444), data, length);
}

int file_write_at(int directory, const char *path, const char *text)
{
	return write_once(openat(directory, path, O_WRONLY | O_CLOEXEC), text, strlen(text));
}

ssize_t file_read_at(int directory, const char *path, char *text, size_t size)
{
	int fd = openat(directory, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t got = read(fd, text, size - 1);
	int saved = errno;
	close(fd);
	errno = saved;
	if (got >= 0)
		text[got] = '\0';
	return got;
}
