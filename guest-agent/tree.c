/*
 * Tree streams: see tree.h. Both directions run with the rights of the job's user in directories that the job may be
 * changing at the same time, so every step goes by descriptor and none follows a symbolic link below the top.
 */
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "glob.h"
#include "protocol.h"
#include "records.h"

#define BUFFER_BYTES (256 * 1024)
/* A file up to this size travels through the buffer, together with its neighbours. */
#define SMALL_FILE_BYTES (32 * 1024)

static int messages_fd;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
	char text[CT_MAX_PATH_BYTES + 256];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(text, sizeof text - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof text - 2)
		length = (int)sizeof text - 2;
	text[length++] = '\n';
	if (write(messages_fd, text, (size_t)length) < 0)
		return; /* Nobody listens. */
}

static int open_top(const char *directory)
{
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		say("%s: %s", directory, strerror(errno));
	return fd;
}

/* ------------------------------------------------------------------ tree-in */

struct reader {
	int fd;
	uint8_t *buffer;
	size_t start;
	size_t end;
};

/* Makes at least `need` bytes available in one piece; false at a premature end. */
static bool fill(struct reader *reader, size_t need)
{
	if (reader->end - reader->start >= need)
		return true;
	memmove(reader->buffer, reader->buffer + reader->start, reader->end - reader->start);
	reader->end -= reader->start;
	reader->start = 0;
	while (reader->end < need) {
		ssize_t got = read(reader->fd, reader->buffer + reader->end, BUFFER_BYTES - reader->end);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			say("the tree stream was cut short");
			return false;
		}
		reader->end += (size_t)got;
	}
	return true;
}

struct entry {
	uint8_t type;
	mode_t mode;
	struct timespec mtime;
	uint64_t size;
	char name[CT_MAX_PATH_BYTES + 1];
};

/* A directory whose mode and time are set when everything in it is done. */
struct finished_directory {
	struct finished_directory *next;
	mode_t mode;
	struct timespec mtime;
	char name[];
};

struct receiver {
	struct reader in;
	int top;
	bool asks_for_code;
	/* The directory of the last entry: most entries share it with the one before. */
	int directory;
	char directory_name[CT_MAX_PATH_BYTES + 1];
	struct finished_directory *directories;
};

static int openat_beneath(int top, const char *path, uint64_t flags)
{
	struct open_how how = { .flags = flags | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS };
	return (int)syscall(SYS_openat2, top, path, &how, sizeof how);
}

static bool valid_name(const char *name, size_t length)
{
	if (length == 0 || memchr(name, 0, length))
		return false;
	for (const char *at = name, *end = name + length; at <= end;) {
		const char *slash = memchr(at, '/', (size_t)(end - at));
		size_t part = (size_t)((slash ? slash : end) - at);
		if (part == 0 || (part == 1 && at[0] == '.') || (part == 2 && at[0] == '.' && at[1] == '.'))
			return false;
		if (!slash)
			break;
		at = slash + 1;
	}
	return true;
}

static bool read_entry(struct reader *in, struct entry *entry)
{
	if (!fill(in, CT_TREE_HEADER_BYTES))
		return false;
	const uint8_t *at = in->buffer + in->start;
	uint32_t mode = get_u32(at + 1), nanoseconds = get_u32(at + 13), name_length = get_u32(at + 17);
	entry->type = at[0];
	entry->mode = mode & 0777;
	entry->mtime.tv_sec = (time_t)get_u64(at + 5);
	entry->mtime.tv_nsec = (long)nanoseconds;
	entry->size = get_u64(at + 21);
	in->start += CT_TREE_HEADER_BYTES;
	if (entry->type == 'E')
		return true;
	if (mode > 0777 || nanoseconds >= 1000000000 || name_length > CT_MAX_PATH_BYTES ||
	    (entry->type != 'F' && entry->type != 'D' && entry->type != 'L') ||
	    (entry->type == 'D' && entry->size != 0) ||
	    (entry->type == 'L' && (entry->size == 0 || entry->size > CT_MAX_PATH_BYTES))) {
		say("malformed entry in the tree stream");
		return false;
	}
	if (!fill(in, name_length))
		return false;
	memcpy(entry->name, in->buffer + in->start, name_length);
	entry->name[name_length] = '\0';
	in->start += name_length;
	if (!valid_name(entry->name, name_length)) {
		say("malformed name in the tree stream");
		return false;
	}
	return true;
}

/* Opens the entry's directory, unless it is open already, and returns the entry's name in it; NULL on failure. */
static const char *enter(struct receiver *receiver, const char *name)
{
	const char *slash = strrchr(name, '/');
	size_t length = slash ? (size_t)(slash - name) : 0;
	const char *base = slash ? slash + 1 : name;
	if (receiver->directory >= 0 && strlen(receiver->directory_name) == length &&
	    memcmp(receiver->directory_name, name, length) == 0)
		return base;
	if (receiver->directory >= 0 && receiver->directory != receiver->top)
		close(receiver->directory);
	memcpy(receiver->directory_name, name, length);
	receiver->directory_name[length] = '\0';
	receiver->directory = length == 0 ? receiver->top :
					    openat_beneath(receiver->top, receiver->directory_name, O_PATH | O_DIRECTORY);
	if (receiver->directory < 0) {
		say("%s: %s", receiver->directory_name, strerror(errno));
		return NULL;
	}
	return base;
}

static bool write_all(int fd, const uint8_t *data, size_t length)
{
	while (length > 0) {
		ssize_t written = write(fd, data, length);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return false;
		data += written;
		length -= (size_t)written;
	}
	return true;
}

/* Whatever comes of it: a file that is not signed is one that is not signed. */
static void ask_for_code(int directory, const char *base)
{
	int fd = openat(directory, base, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	void *page = fd < 0 ? MAP_FAILED : mmap(NULL, 1, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
	if (page != MAP_FAILED)
		munmap(page, 1);
	if (fd >= 0)
		close(fd);
}

static bool receive_file(struct receiver *receiver, const struct entry *entry)
{
	const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
	const char *base = enter(receiver, entry->name);
	if (!base)
		return false;
	/* O_EXCL: what is there already is replaced, never written into (it may be a link to something else). */
	int fd = openat(receiver->directory, base, flags, entry->mode);
	if (fd < 0 && errno == EEXIST && unlinkat(receiver->directory, base, 0) == 0)
		fd = openat(receiver->directory, base, flags, entry->mode);
	bool good = fd >= 0;
	struct reader *in = &receiver->in;
	for (uint64_t left = entry->size; good && left > 0;) {
		if (!fill(in, 1)) {
			close(fd);
			return false;
		}
		size_t take = in->end - in->start;
		if (take > left)
			take = (size_t)left;
		good = write_all(fd, in->buffer + in->start, take);
		in->start += take;
		left -= take;
	}
	if (good) {
		const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, entry->mtime };
		good = futimens(fd, times) == 0;
	}
	if (!good)
		say("%s: %s", entry->name, strerror(errno));
	if (fd >= 0)
		close(fd);
	if (good && receiver->asks_for_code && entry->size > 0)
		ask_for_code(receiver->directory, base);
	return good;
}

static bool receive_link(struct receiver *receiver, const struct entry *entry)
{
	char target[CT_MAX_PATH_BYTES + 1];
	struct reader *in = &receiver->in;
	const char *base = enter(receiver, entry->name);
	if (!base || !fill(in, (size_t)entry->size))
		return false;
	memcpy(target, in->buffer + in->start, (size_t)entry->size);
	target[entry->size] = '\0';
	in->start += (size_t)entry->size;
	if (memchr(target, 0, (size_t)entry->size)) {
		say("malformed link in the tree stream");
		return false;
	}
	int result = symlinkat(target, receiver->directory, base);
	if (result < 0 && errno == EEXIST && unlinkat(receiver->directory, base, 0) == 0)
		result = symlinkat(target, receiver->directory, base);
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, entry->mtime };
	if (result < 0 || utimensat(receiver->directory, base, times, AT_SYMLINK_NOFOLLOW) < 0) {
		say("%s: %s", entry->name, strerror(errno));
		return false;
	}
	return true;
}

static bool receive_directory(struct receiver *receiver, const struct entry *entry)
{
	const char *base = enter(receiver, entry->name);
	if (!base)
		return false;
	/* Writable for us until its content is there. */
	int result = mkdirat(receiver->directory, base, 0700);
	if (result < 0 && errno == EEXIST) {
		/* Also writable for us, even if it was not; whatever is no directory fails here. */
		struct stat status;
		int fd = openat(receiver->directory, base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		result = fd < 0 ? -1 : fstat(fd, &status);
		if (result == 0 && (status.st_mode & 0700) != 0700)
			result = fchmod(fd, 0700);
		if (fd >= 0)
			close(fd);
	}
	size_t length = strlen(entry->name) + 1;
	struct finished_directory *directory = malloc(sizeof *directory + length);
	if (result < 0 || !directory) {
		say("%s: %s", entry->name, strerror(errno));
		free(directory);
		return false;
	}
	memcpy(directory->name, entry->name, length);
	directory->mode = entry->mode;
	directory->mtime = entry->mtime;
	directory->next = receiver->directories;
	receiver->directories = directory;
	return true;
}

/* The list runs backwards, so that children come before parents: a parent may become unreadable. */
static bool finish_directories(struct receiver *receiver)
{
	bool good = true;
	while (receiver->directories) {
		struct finished_directory *directory = receiver->directories;
		const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, directory->mtime };
		int fd = openat_beneath(receiver->top, directory->name, O_RDONLY | O_DIRECTORY);
		if (good && (fd < 0 || fchmod(fd, directory->mode) < 0 || futimens(fd, times) < 0)) {
			say("%s: %s", directory->name, strerror(errno));
			good = false;
		}
		if (fd >= 0)
			close(fd);
		receiver->directories = directory->next;
		free(directory);
	}
	return good;
}

static bool receive(struct receiver *receiver)
{
	struct reader *in = &receiver->in;
	struct entry *entry = malloc(sizeof *entry);
	if (!entry || !fill(in, strlen(CT_TREE_MAGIC)))
		goto bad;
	if (memcmp(in->buffer + in->start, CT_TREE_MAGIC, strlen(CT_TREE_MAGIC)) != 0) {
		say("not a tree stream");
		goto bad;
	}
	in->start += strlen(CT_TREE_MAGIC);
	while (read_entry(in, entry)) {
		bool good;
		if (entry->type == 'E') {
			free(entry);
			return true;
		}
		if (entry->type == 'F')
			good = receive_file(receiver, entry);
		else if (entry->type == 'L')
			good = receive_link(receiver, entry);
		else
			good = receive_directory(receiver, entry);
		if (!good)
			break;
	}
bad:
	free(entry);
	return false;
}

int tree_in(int input_fd, int error_fd, const char *directory, bool asks_for_code)
{
	messages_fd = error_fd;
	struct receiver receiver = { .in = { .fd = input_fd }, .asks_for_code = asks_for_code, .directory = -1 };
	receiver.in.buffer = malloc(BUFFER_BYTES);
	receiver.top = open_top(directory);
	bool good = receiver.in.buffer && receiver.top >= 0 && receive(&receiver);
	/* Also after a failure: the modes of what did arrive are right then. */
	good = finish_directories(&receiver) && good;
	if (receiver.directory >= 0 && receiver.directory != receiver.top)
		close(receiver.directory);
	if (receiver.top >= 0)
		close(receiver.top);
	free(receiver.in.buffer);
	return good ? 0 : 1;
}

/* ----------------------------------------------------------------- tree-out */

struct sender {
	int fd;
	uint8_t *buffer;
	size_t length;
	bool failed; /* Something that was asked for could not be sent. */
	bool broken; /* Nobody reads any more. */
	struct glob_set *patterns;
	char path[CT_MAX_PATH_BYTES + 2];
};

static void flush_sender(struct sender *sender)
{
	if (!sender->broken && !write_all(sender->fd, sender->buffer, sender->length))
		sender->broken = true;
	sender->length = 0;
}

/* Space for `need` bytes (at most BUFFER_BYTES) in the buffer. */
static uint8_t *space(struct sender *sender, size_t need)
{
	if (BUFFER_BYTES - sender->length < need)
		flush_sender(sender);
	return sender->buffer + sender->length;
}

static void put_header(struct sender *sender, uint8_t type, const struct stat *status, uint64_t size, const char *name,
		       size_t name_length)
{
	uint8_t *at = space(sender, CT_TREE_HEADER_BYTES + name_length);
	memset(at, 0, CT_TREE_HEADER_BYTES);
	at[0] = type;
	if (status) {
		put_u32(at + 1, status->st_mode & 0777);
		put_u64(at + 5, (uint64_t)status->st_mtim.tv_sec);
		put_u32(at + 13, (uint32_t)status->st_mtim.tv_nsec);
	}
	put_u32(at + 17, (uint32_t)name_length);
	put_u64(at + 21, size);
	memcpy(at + CT_TREE_HEADER_BYTES, name, name_length);
	sender->length += CT_TREE_HEADER_BYTES + name_length;
}

/* A directory on the way to the current one, with its own time and mode. */
struct level {
	const struct level *parent;
	struct stat status;
	size_t path_length;
	bool *announced;
};

static void announce(struct sender *sender, const struct level *level)
{
	if (!level->parent || *level->announced)
		return;
	announce(sender, level->parent);
	*level->announced = true;
	put_header(sender, 'D', &level->status, 0, sender->path, level->path_length);
}

static void complain(struct sender *sender)
{
	/* Gone since it was listed: as if it had never been there. */
	if (errno == ENOENT) {
		say("%s: vanished", sender->path);
		return;
	}
	say("%s: %s", sender->path, strerror(errno));
	sender->failed = true;
}

static void put_zeros(struct sender *sender, uint64_t count)
{
	while (count > 0 && !sender->broken) {
		size_t take = count < SMALL_FILE_BYTES ? (size_t)count : SMALL_FILE_BYTES;
		memset(space(sender, take), 0, take);
		sender->length += take;
		count -= take;
	}
}

/* Exactly the announced size, whatever happens to the file meanwhile. */
static void put_content(struct sender *sender, int fd, uint64_t size)
{
	uint64_t left = size;
	if (size <= SMALL_FILE_BYTES) {
		uint8_t *at = space(sender, (size_t)size);
		while (left > 0) {
			ssize_t got = read(fd, at + (size - left), (size_t)left);
			if (got < 0 && errno == EINTR)
				continue;
			if (got <= 0)
				break;
			left -= (uint64_t)got;
		}
		sender->length += (size_t)(size - left);
	} else {
		flush_sender(sender);
		while (left > 0 && !sender->broken) {
			/* Pages go from the file into the pipe without a copy of ours. */
			ssize_t got = sendfile(sender->fd, fd, NULL, left < (1U << 30) ? (size_t)left : (1U << 30));
			if (got < 0 && errno == EINTR)
				continue;
			if (got < 0 && errno == EPIPE)
				sender->broken = true;
			if (got <= 0)
				break;
			left -= (uint64_t)got;
		}
	}
	if (left > 0 && !sender->broken) {
		say("%s: became shorter while it was read; filled up with zeros", sender->path);
		put_zeros(sender, left);
		return;
	}
	struct stat after;
	if (fstat(fd, &after) == 0 && (uint64_t)after.st_size > size)
		say("%s: became longer while it was read; cut off", sender->path);
}

static void send_file(struct sender *sender, int directory, const char *name, const struct level *level)
{
	struct stat status;
	/* O_NONBLOCK: should a pipe have taken the file's place, its open must not wait for a writer. */
	int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) < 0) {
		complain(sender);
	} else if (S_ISREG(status.st_mode)) {
		announce(sender, level);
		put_header(sender, 'F', &status, (uint64_t)status.st_size, sender->path, strlen(sender->path));
		put_content(sender, fd, (uint64_t)status.st_size);
	}
	if (fd >= 0)
		close(fd);
}

/* Not inlined: visit and walk call each other once per level, and this has a path on its stack. */
static __attribute__((noinline)) void send_link(struct sender *sender, int directory, const char *name, const struct stat *status,
		      const struct level *level)
{
	char target[CT_MAX_PATH_BYTES + 1];
	ssize_t length = readlinkat(directory, name, target, sizeof target);
	if (length < 0) {
		complain(sender);
		return;
	}
	if (length == 0 || length > CT_MAX_PATH_BYTES)
		return;
	announce(sender, level);
	put_header(sender, 'L', status, (uint64_t)length, sender->path, strlen(sender->path));
	memcpy(space(sender, (size_t)length), target, (size_t)length);
	sender->length += (size_t)length;
}

static int by_bytes(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

/* All names in a directory, in byte order: the same tree gives the same stream. NULL on failure. */
static char **list(DIR *stream, size_t *count)
{
	size_t size = 64;
	char **names = malloc(size * sizeof *names);
	bool complete = false;
	*count = 0;
	while (names) {
		errno = 0;
		struct dirent *entry = readdir(stream);
		if (!entry) {
			complete = errno == 0;
			break;
		}
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (*count == size) {
			size *= 2;
			char **more = realloc(names, size * sizeof *names);
			if (!more)
				break;
			names = more;
		}
		names[*count] = strdup(entry->d_name);
		if (!names[*count])
			break;
		++*count;
	}
	if (complete) {
		qsort(names, *count, sizeof *names, by_bytes);
		return names;
	}
	int saved = errno;
	for (size_t index = 0; names && index < *count; index++)
		free(names[index]);
	free(names);
	*count = 0;
	errno = saved;
	return NULL;
}

static void walk(struct sender *sender, int directory, const struct level *level);

static void visit(struct sender *sender, int directory, const char *name, const struct level *level)
{
	struct stat status;
	if (fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0) {
		complain(sender);
		return;
	}
	bool selected = glob_selects(sender->patterns, sender->path);
	if (!S_ISDIR(status.st_mode)) {
		if (selected && S_ISREG(status.st_mode))
			send_file(sender, directory, name, level);
		else if (selected && S_ISLNK(status.st_mode))
			send_link(sender, directory, name, &status, level);
		return;
	}
	bool announced = false;
	struct level here = { .parent = level,
			      .status = status,
			      .path_length = strlen(sender->path),
			      .announced = &announced };
	if (selected)
		announce(sender, &here);
	if (!glob_may_select_below(sender->patterns, sender->path))
		return;
	int below = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (below < 0)
		complain(sender);
	else
		walk(sender, below, &here);
}

/* Takes over `directory`. */
static void walk(struct sender *sender, int directory, const struct level *level)
{
	size_t count = 0, path_length = level->path_length;
	DIR *stream = fdopendir(directory);
	char **names = stream ? list(stream, &count) : NULL;
	if (!names)
		complain(sender);
	for (size_t index = 0; index < count; index++) {
		size_t length = strlen(names[index]);
		size_t slash = path_length ? 1 : 0;
		if (sender->broken) {
			/* Only frees what is left. */
		} else if (path_length + slash + length > CT_MAX_PATH_BYTES) {
			say("%s/%s: the path is too long", sender->path, names[index]);
			sender->failed = true;
		} else {
			if (slash)
				sender->path[path_length] = '/';
			memcpy(sender->path + path_length + slash, names[index], length + 1);
			visit(sender, dirfd(stream), names[index], level);
			sender->path[path_length] = '\0';
		}
		free(names[index]);
	}
	free(names);
	if (stream)
		closedir(stream);
	else
		close(directory);
}

int tree_out(int output_fd, int error_fd, const char *directory, char *const *patterns, size_t pattern_count)
{
	messages_fd = error_fd;
	struct sender *sender = calloc(1, sizeof *sender);
	if (!sender)
		return 1;
	sender->fd = output_fd;
	sender->buffer = malloc(BUFFER_BYTES);
	sender->patterns = glob_compile(patterns, pattern_count);
	int top = open_top(directory);
	bool good = false;
	if (top >= 0 && sender->buffer && sender->patterns) {
		struct level level = { 0 };
		memcpy(space(sender, strlen(CT_TREE_MAGIC)), CT_TREE_MAGIC, strlen(CT_TREE_MAGIC));
		sender->length += strlen(CT_TREE_MAGIC);
		walk(sender, top, &level);
		put_header(sender, 'E', NULL, 0, "", 0);
		flush_sender(sender);
		for (size_t index = 0; index < pattern_count; index++)
			if (glob_unmatched(sender->patterns, index))
				say("%s: matches nothing", glob_unmatched(sender->patterns, index));
		good = !sender->failed && !sender->broken;
	} else if (top >= 0) {
		close(top);
	}
	if (sender->patterns)
		glob_free(sender->patterns);
	free(sender->buffer);
	free(sender);
	return good ? 0 : 1;
}
