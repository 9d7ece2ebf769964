/* Loading BPF programs: see programs.h. */
#include "programs.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "console.h"

/* What a console takes before the VM ends. */
#define CONSOLE_BYTES 2000

static int print_problem(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char *text;
	if (level != LIBBPF_WARN)
		return 0;
	int length = vasprintf(&text, format, arguments);
	if (length < 0)
		return 0;
	/* What the verifier says comes in one piece; its last lines hold the reason. */
	char *end = length > CONSOLE_BYTES ? text + length - CONSOLE_BYTES : text;
	for (char *save, *line = strtok_r(end, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		report("%s", line);
	free(text);
	return 0;
}

struct bpf_object *programs_open(const char *name, const uint8_t *begin, const uint8_t *end)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = name);
	libbpf_set_print(print_problem);
	struct bpf_object *object = bpf_object__open_mem(begin, (size_t)(end - begin), &options);
	if (!object)
		fatal("cannot read the BPF programs: %s", strerror(errno));
	return object;
}

void programs_load(struct bpf_object *object)
{
	if (bpf_object__load(object) != 0)
		fatal("cannot load the BPF programs: %s", strerror(errno));
}

int programs_map(const struct bpf_object *object, const char *name)
{
	int fd = bpf_object__find_map_fd_by_name(object, name);
	if (fd < 0)
		fatal("the BPF object has no map %s", name);
	return fd;
}

struct bpf_program *programs_find(const struct bpf_object *object, const char *name)
{
	struct bpf_program *found = bpf_object__find_program_by_name(object, name);
	if (!found)
		fatal("the BPF object has no program %s", name);
	return found;
}
