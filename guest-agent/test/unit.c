/* Native unit tests, TAP on stdout. Needs no privileges; works in a directory of its own below TMPDIR. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "exec.h"
#include "glob.h"
#include "hello.h"
#include "identity.h"
#include "protocol.h"
#include "records.h"
#include "tree.h"

static int tests, failures;

static void check(bool good, const char *name)
{
	printf("%sok %d - %s\n", good ? "" : "not ", ++tests, name);
	failures += !good;
}

/* --- records --- */

struct seen {
	char text[4096];
	size_t records;
};

static int note(void *context, uint8_t type, const uint8_t *payload, size_t length, bool first)
{
	struct seen *seen = context;
	size_t at = strlen(seen->text);
	if (first)
		seen->records++;
	snprintf(seen->text + at, sizeof seen->text - at, "%s%02x:%.*s", first ? "|" : "+", type, (int)length,
		 (const char *)payload);
	return type == 0xee ? -1 : 0;
}

static size_t put_record(uint8_t *at, uint8_t type, const char *text)
{
	at[0] = type;
	put_u32(at + 1, (uint32_t)strlen(text));
	memcpy(at + 5, text, strlen(text));
	return 5 + strlen(text);
}

static void test_records(void)
{
	uint8_t bytes[256];
	size_t length = put_record(bytes, CT_EXEC_INPUT_ARG, "hello");
	length += put_record(bytes + length, CT_EXEC_INPUT_ENV, "");
	length += put_record(bytes + length, CT_EXEC_INPUT_STDIN, "data");
	length += put_record(bytes + length, CT_EXEC_INPUT_STDIN, "");
	length += put_record(bytes + length, CT_EXEC_INPUT_CWD, "/");
	struct record_decoder decoder;
	struct seen seen = { 0 };
	record_decoder_init(&decoder, exec_streams);
	check(record_decoder_push(&decoder, bytes, length, note, &seen) == 0 &&
		      strcmp(seen.text, "|10:hello|11:|20:data|20:|12:/") == 0 && !record_decoder_pending(&decoder),
	      "records in one piece");
	record_decoder_free(&decoder);

	bool good = true;
	for (size_t step = 1; step < length; step++) {
		memset(&seen, 0, sizeof seen);
		record_decoder_init(&decoder, exec_streams);
		for (size_t at = 0; at < length; at += step) {
			/* Exact allocations, so that the sanitizer sees a read beyond the piece. */
			size_t piece = length - at < step ? length - at : step;
			uint8_t *copy = malloc(piece);
			memcpy(copy, bytes + at, piece);
			good &= record_decoder_push(&decoder, copy, piece, note, &seen) == 0;
			free(copy);
		}
		good &= seen.records == 5 && strncmp(seen.text, "|10:hello|11:|20:", 17) == 0;
		good &= !record_decoder_pending(&decoder);
		record_decoder_free(&decoder);
	}
	check(good, "records in pieces of every size");

	memset(&seen, 0, sizeof seen);
	record_decoder_init(&decoder, exec_streams);
	record_decoder_push(&decoder, bytes, 7, note, &seen);
	check(seen.records == 0 && record_decoder_pending(&decoder), "half a record is pending");
	record_decoder_free(&decoder);

	const uint8_t huge[5] = { CT_EXEC_INPUT_ARG, 0, 1, 0, 1 };
	record_decoder_init(&decoder, NULL);
	check(record_decoder_push(&decoder, huge, 5, note, &seen) == -1 && !decoder.carry &&
		      record_decoder_push(&decoder, bytes, length, note, &seen) == -1,
	      "a record beyond the limit ends decoding before anything is allocated");
	record_decoder_free(&decoder);
}

/* --- identity --- */

static void test_identity(void)
{
	struct identity_request request = { 0 };
	uint8_t entropy[1025] = { 1 };
	const uint8_t time[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	check(identity_record(&request, CT_IDENTITY_RECORD_ENTROPY, entropy, 63) < 0 &&
		      identity_record(&request, CT_IDENTITY_RECORD_ENTROPY, entropy, 1025) < 0 &&
		      identity_record(&request, CT_IDENTITY_RECORD_TIME, time, 7) < 0 &&
		      identity_record(&request, CT_IDENTITY_RECORD_HOSTNAME, (const uint8_t *)"A", 1) < 0 &&
		      identity_record(&request, CT_IDENTITY_RECORD_HOSTNAME, entropy, 64) < 0 &&
		      identity_record(&request, CT_IDENTITY_RECORD_VOLUME, (const uint8_t *)"a\0b", 3) < 0 &&
		      identity_record(&request, 0x05, time, 8) < 0,
	      "malformed identity records are refused");
	check(identity_record(&request, CT_IDENTITY_RECORD_ENTROPY, entropy, 64) == 0 &&
		      identity_record(&request, CT_IDENTITY_RECORD_TIME, time, 8) == 0 &&
		      identity_record(&request, CT_IDENTITY_RECORD_HOSTNAME, (const uint8_t *)"job-1", 5) == 0 &&
		      !identity_complete(&request) &&
		      identity_record(&request, CT_IDENTITY_RECORD_VOLUME, (const uint8_t *)"none", 4) == 0 &&
		      identity_complete(&request) && request.time_ns == 0x0102030405060708,
	      "an identity is complete with all four records");
	check(identity_record(&request, CT_IDENTITY_RECORD_TIME, time, 8) < 0, "an identity record comes once");
}

/* --- hello --- */

static void test_hello(void)
{
	uint8_t wire[512];
	struct hello hello = { 0 };
	size_t length = 0;
	memcpy(wire, "ct-noise\r\nCTHELLCTHELLO1", 24);
	length = 24;
	for (int index = 0; index < CT_HELLO_NONCE_BYTES; index++)
		wire[length++] = (uint8_t)(index == 3 ? 'C' : index);
	memcpy(wire + length, "PRI", 3);
	check(hello_scan(&hello, wire, length + 3) == length && hello_complete(&hello) &&
		      memcmp(hello.bytes, "CTHELLO1", 8) == 0 && hello.bytes[8 + 31] == 31,
	      "hello is found behind noise and a broken magic, and nothing beyond it is taken");
	memset(&hello, 0, sizeof hello);
	bool early = false;
	for (size_t index = 0; index < length; index++) {
		early |= hello_complete(&hello);
		hello_scan(&hello, wire + index, 1);
	}
	check(!early && hello_complete(&hello), "hello byte by byte");
	memset(&hello, 0, sizeof hello);
	check(hello_scan(&hello, (const uint8_t *)"CTHELLO2CTHELLO", 15) == 15 && !hello_complete(&hello),
	      "no hello without the magic");
}

/* --- glob --- */

static bool selects(const char *path, const char *first, const char *second, const char *third)
{
	char *patterns[] = { (char *)first, (char *)second, (char *)third };
	struct glob_set *set = glob_compile(patterns, third ? 3 : second ? 2 : 1);
	bool result = glob_selects(set, path);
	/* Whatever is selected must be reachable by a walk that prunes. */
	char above[256];
	snprintf(above, sizeof above, "%s", path);
	for (char *slash; result && (slash = strrchr(above, '/'));) {
		*slash = '\0';
		if (!glob_may_select_below(set, above)) {
			printf("# %s selects %s, but not below %s\n", first, path, above);
			result = false;
		}
	}
	glob_free(set);
	return result;
}

static bool one(const char *pattern, const char *path)
{
	return selects(path, pattern, NULL, NULL);
}

static void test_glob(void)
{
	check(one("a", "a") && one("a/b", "a/b") && !one("a/b", "a") && !one("a", "b") && !one("a", "x/a"),
	      "literal names");
	check(one("a", "a/b/c") && one("a/*", "a/b/c"), "a directory takes what is below it");
	check(one("*.o", "x.o") && one("*.o", ".o") && !one("*.o", "d/x.o") && one("*", ".hidden") &&
		      one("a*b*c", "aXXbYYbZc") && !one("a*b*c", "aXXbYY") && one("?", "x") && !one("?", "") &&
		      !one("?", "xy"),
	      "* and ? stay in a name");
	check(one("[a-c]x", "bx") && !one("[a-c]x", "dx") && one("[!a-c]x", "dx") && !one("[^a-c]x", "ax") &&
		      one("[]]", "]") && one("[a", "[a") && one("[a-]", "-") && one("[x\xff]", "\xff"),
	      "bracket expressions");
	check(one("**", "a") && one("**", "a/b") && one("a/**", "a/b/c") && !one("a/**", "a") && !one("a/**", "b/c") &&
		      one("**/c", "c") && one("**/c", "a/b/c") && one("a/**/c", "a/c") && one("a/**/c", "a/x/y/c") &&
		      !one("a/**/c", "a/x/y/d") && one("**/x/**/*.c", "a/x/b/m.c") && one("**/x/**/*.c", "x/m.c") &&
		      one("**/**", "a"),
	      "** takes any number of directories");
	check(one("./a/", "a") && one(".", "a/b") && one("a//b", "a/b") && one("\\*", "*") && !one("\\*", "a"),
	      "spellings of a pattern");
	check(!selects("a/b.o", "a", "!**/*.o", NULL) && selects("a/b.c", "a", "!**/*.o", NULL) &&
		      !selects("a/x/y", "a", "!a/x", NULL) && selects("a/x/y", "a", "!a/x", "a/x/y") &&
		      !selects("b", "!a", NULL, NULL),
	      "a leading ! takes out, and the last match wins");
	char *patterns[] = { "src/*.c", "!src/gen" };
	struct glob_set *set = glob_compile(patterns, 2);
	check(glob_may_select_below(set, "src") && !glob_may_select_below(set, "lib") &&
		      !glob_may_select_below(set, "src/gen"),
	      "a walk skips what no pattern can reach");
	check(glob_unmatched(set, 0) != NULL && glob_unmatched(set, 1) == NULL && glob_selects(set, "src/a.c") &&
		      glob_unmatched(set, 0) == NULL,
	      "a positive pattern without a match is named");
	glob_free(set);
	char many[200];
	memset(many, 0, sizeof many);
	for (int index = 0; index < 90; index++)
		strcat(many, "*a");
	check(!glob_component(many, strlen(many), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", 42),
	      "many stars do not explode");
}

/* --- trees --- */

static char base[256];

static const char *path_of(const char *name)
{
	static char paths[8][600];
	static int next;
	char *path = paths[next++ % 8];
	snprintf(path, sizeof paths[0], "%s/%s", base, name);
	return path;
}

static void write_file(const char *name, const void *data, size_t length, mode_t mode)
{
	int fd = open(path_of(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, data, length) != (ssize_t)length || fchmod(fd, mode) < 0)
		printf("# cannot write %s: %s\n", name, strerror(errno));
	close(fd);
}

struct result {
	int status;
	uint8_t *bytes;
	size_t length;
	char errors[8192];
};

static size_t drain(int fd, uint8_t **bytes)
{
	size_t size = 1 << 16, length = 0;
	*bytes = malloc(size);
	for (ssize_t got; (got = read(fd, *bytes + length, size - length)) > 0;) {
		length += (size_t)got;
		if (length == size)
			*bytes = realloc(*bytes, size *= 2);
	}
	return length;
}

/* Runs a built-in in a child, as the agent does; `input` may be NULL. */
static struct result run(const char *directory, char **patterns, size_t count, const uint8_t *input, size_t length)
{
	struct result result = { 0 };
	int in[2], out[2];
	char errors_path[600];
	snprintf(errors_path, sizeof errors_path, "%s/errors", base);
	int errors = open(errors_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (errors < 0 || pipe(in) < 0 || pipe(out) < 0)
		abort();
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		close(in[1]);
		close(out[0]);
		umask(0);
		int status = input ? tree_in(in[0], errors, directory, false) :
				     tree_out(out[1], errors, directory, patterns, count);
		_exit(status);
	}
	close(in[0]);
	close(out[1]);
	pid_t writer = input ? fork() : -1;
	if (writer == 0) {
		close(out[0]);
		signal(SIGPIPE, SIG_IGN);
		for (size_t at = 0; at < length;) {
			ssize_t written = write(in[1], input + at, length - at);
			if (written <= 0)
				_exit(0);
			at += (size_t)written;
		}
		_exit(0);
	}
	close(in[1]);
	result.length = drain(out[0], &result.bytes);
	close(out[0]);
	int status;
	waitpid(pid, &status, 0);
	result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	if (writer > 0)
		waitpid(writer, NULL, 0);
	ssize_t got = pread(errors, result.errors, sizeof result.errors - 1, 0);
	result.errors[got > 0 ? got : 0] = '\0';
	close(errors);
	return result;
}

static size_t put_entry(uint8_t *at, char type, mode_t mode, int64_t seconds, const char *name, const char *content,
			uint64_t size)
{
	at[0] = (uint8_t)type;
	put_u32(at + 1, mode);
	put_u64(at + 5, (uint64_t)seconds);
	put_u32(at + 13, 0);
	put_u32(at + 17, (uint32_t)strlen(name));
	put_u64(at + 21, size);
	memcpy(at + 29, name, strlen(name));
	size_t length = strlen(content);
	memcpy(at + 29 + strlen(name), content, length);
	return 29 + strlen(name) + length;
}

static size_t put_magic(uint8_t *at)
{
	memcpy(at, CT_TREE_MAGIC, 8);
	return 8;
}

/* One entry and the end, into a fresh directory; whether it was taken. */
static int take_one(char type, mode_t mode, const char *name, const char *content, uint64_t size, char *errors)
{
	uint8_t bytes[9000];
	size_t length = put_magic(bytes);
	length += put_entry(bytes + length, type, mode, 1, name, content, size);
	length += put_entry(bytes + length, 'E', 0, 0, "", "", 0);
	struct result result = run(path_of("in"), NULL, 0, bytes, length);
	if (errors)
		snprintf(errors, 4096, "%.4000s", result.errors);
	free(result.bytes);
	return result.status;
}

static bool same_stat(const char *left, const char *right)
{
	struct stat a, b;
	return lstat(left, &a) == 0 && lstat(right, &b) == 0 && a.st_mode == b.st_mode &&
	       a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec &&
	       (S_ISDIR(a.st_mode) || a.st_size == b.st_size);
}

static void test_tree_round_trip(void)
{
	static const char odd[] = "src/\xff\xfe new\nline \\*[x] -rf";
	mkdir(path_of("src"), 0755);
	mkdir(path_of("src/deep"), 0755);
	mkdir(path_of("src/deep/er"), 0755);
	mkdir(path_of("src/empty"), 0711);
	mkdir(path_of("src/closed"), 0755);
	write_file("src/closed/x", "x", 1, 0400);
	write_file("src/a.txt", "hello", 5, 0644);
	write_file("src/deep/er/run.sh", "#!/bin/sh\n", 10, 0755);
	write_file("src/zero", "", 0, 0600);
	write_file(odd, "odd", 3, 0644);
	size_t big_bytes = 3 * 1024 * 1024 + 17;
	uint8_t *big = malloc(big_bytes);
	for (size_t index = 0; index < big_bytes; index++)
		big[index] = (uint8_t)(index * 31 >> 3);
	write_file("src/big", big, big_bytes, 0644);
	if (symlink("a.txt", path_of("src/link")) < 0 || symlink("/nowhere/at all", path_of("src/dangling")) < 0 ||
	    mkfifo(path_of("src/fifo"), 0600) < 0)
		printf("# cannot make links: %s\n", strerror(errno));
	struct timespec times[2] = { { 1000, 0 }, { 1234567890, 123456789 } };
	utimensat(AT_FDCWD, path_of("src/a.txt"), times, 0);
	utimensat(AT_FDCWD, path_of("src/link"), times, AT_SYMLINK_NOFOLLOW);
	chmod(path_of("src/closed"), 0555);
	utimensat(AT_FDCWD, path_of("src/deep"), times, 0);

	char *all[] = { "**" };
	struct result out = run(path_of("src"), all, 1, NULL, 0);
	check(out.status == 0 && out.errors[0] == '\0' && out.length > big_bytes, "tree-out of everything");
	struct result again = run(path_of("src"), all, 1, NULL, 0);
	check(again.length == out.length && memcmp(again.bytes, out.bytes, out.length) == 0, "the same tree, the same bytes");

	mkdir(path_of("dst"), 0755);
	struct result in = run(path_of("dst"), NULL, 0, out.bytes, out.length);
	check(in.status == 0 && in.errors[0] == '\0', "tree-in of it");
	char odd_copy[100];
	snprintf(odd_copy, sizeof odd_copy, "dst%s", odd + 3);
	check(same_stat(path_of("src/a.txt"), path_of("dst/a.txt")) &&
		      same_stat(path_of("src/deep"), path_of("dst/deep")) &&
		      same_stat(path_of("src/deep/er/run.sh"), path_of("dst/deep/er/run.sh")) &&
		      same_stat(path_of("src/empty"), path_of("dst/empty")) &&
		      same_stat(path_of("src/closed"), path_of("dst/closed")) &&
		      same_stat(path_of("src/closed/x"), path_of("dst/closed/x")) &&
		      same_stat(path_of("src/link"), path_of("dst/link")) &&
		      same_stat(path_of("src/dangling"), path_of("dst/dangling")) &&
		      same_stat(path_of(odd), path_of(odd_copy)) && access(path_of("dst/fifo"), F_OK) < 0,
	      "modes, times, links, odd names and read-only directories travel; a pipe does not");
	struct result back = run(path_of("dst"), all, 1, NULL, 0);
	check(back.length == out.length && memcmp(back.bytes, out.bytes, out.length) == 0, "contents travel");
	struct result over = run(path_of("dst"), NULL, 0, out.bytes, out.length);
	check(over.status == 0 && same_stat(path_of("src/closed"), path_of("dst/closed")), "over an existing tree");

	struct result cut = run(path_of("dst"), NULL, 0, out.bytes, out.length - 1);
	check(cut.status == 1 && strstr(cut.errors, "cut short"), "a stream without its end is refused");

	char *some[] = { "deep/**/*.sh", "*.txt", "nothing/here", "!a.*" };
	struct result picked = run(path_of("src"), some, 4, NULL, 0);
	mkdir(path_of("picked"), 0755);
	struct result landed = run(path_of("picked"), NULL, 0, picked.bytes, picked.length);
	check(picked.status == 0 && landed.status == 0 && access(path_of("picked/deep/er/run.sh"), X_OK) == 0 &&
		      same_stat(path_of("src/deep"), path_of("picked/deep")) &&
		      access(path_of("picked/a.txt"), F_OK) < 0 && access(path_of("picked/empty"), F_OK) < 0,
	      "patterns pick, with the directories above");
	check(strcmp(picked.errors, "nothing/here: matches nothing\n") == 0, "a pattern without a match is named");
	chmod(path_of("src/closed"), 0755);
	chmod(path_of("dst/closed"), 0755);
	free(big);
	free(out.bytes), free(again.bytes), free(in.bytes), free(back.bytes), free(over.bytes), free(cut.bytes);
	free(picked.bytes), free(landed.bytes);
}

static void test_hostile_streams(void)
{
	char errors[4096];
	mkdir(path_of("in"), 0755);
	mkdir(path_of("outside"), 0755);
	write_file("outside/victim", "safe", 4, 0644);
	static const char *const names[] = { "..", ".", "../x", "a/../../x", "/x", "a//b", "x/", "./x", "" };
	bool refused = true;
	for (size_t index = 0; index < sizeof names / sizeof names[0]; index++)
		refused &= take_one('F', 0644, names[index], "x", 1, errors) == 1 && strstr(errors, "malformed name");
	check(refused, "names that lead elsewhere are refused");
	check(take_one('F', 0644, "missing/x", "x", 1, errors) == 1 && strstr(errors, "missing"),
	      "a file without its directory is refused");
	check(take_one('X', 0644, "x", "", 0, errors) == 1 && take_one('F', 04755, "x", "", 0, errors) == 1 &&
		      take_one('L', 0777, "x", "", 0, errors) == 1 && take_one('D', 0755, "x", "y", 1, errors) == 1,
	      "unknown types, set-uid bits and empty links are refused");

	check(symlink("../outside", path_of("in/door")) == 0 && take_one('F', 0644, "door/victim", "evil", 4, errors) == 1,
	      "a link that was there is not followed");
	uint8_t bytes[1024];
	size_t length = put_magic(bytes);
	length += put_entry(bytes + length, 'L', 0777, 1, "gate", "../outside", 10);
	length += put_entry(bytes + length, 'F', 0644, 1, "gate/victim", "evil", 4);
	length += put_entry(bytes + length, 'E', 0, 0, "", "", 0);
	struct result result = run(path_of("in"), NULL, 0, bytes, length);
	char content[8] = { 0 };
	int fd = open(path_of("outside/victim"), O_RDONLY);
	check(result.status == 1 && read(fd, content, 7) == 4 && strcmp(content, "safe") == 0,
	      "a link from the stream is not followed");
	close(fd);
	free(result.bytes);
	check(symlink("../outside/victim", path_of("in/pointer")) == 0 &&
		      take_one('F', 0600, "pointer", "new", 3, errors) == 0,
	      "a file takes the place of a link");
	struct stat status;
	check(lstat(path_of("in/pointer"), &status) == 0 && S_ISREG(status.st_mode) &&
		      stat(path_of("outside/victim"), &status) == 0 && status.st_size == 4,
	      "and what the link named is untouched");
	struct result noise = run(path_of("in"), NULL, 0, (const uint8_t *)"GET / HTTP/1.1\r\n\r\n", 18);
	check(noise.status == 1 && strstr(noise.errors, "not a tree stream"), "something else is refused");
	free(noise.bytes);
}

int main(void)
{
	const char *directory = getenv("TMPDIR");
	char command[400];
	snprintf(base, sizeof base, "%s/guest-agent-XXXXXX", directory && *directory ? directory : "/tmp");
	if (!mkdtemp(base)) {
		perror("mkdtemp");
		return 2;
	}
	umask(022);
	test_records();
	test_identity();
	test_hello();
	test_glob();
	test_tree_round_trip();
	test_hostile_streams();
	snprintf(command, sizeof command, "rm -rf '%s'", base);
	if (system(command) != 0)
		printf("# cannot remove %s\n", base);
	printf("1..%d\n# %d of %d failed\n", tests, failures, tests);
	return failures ? 1 : 0;
}
