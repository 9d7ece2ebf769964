/* The BPF programs of the VM: see steering.h. */
#include "steering.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "console.h"
#include "protocol.h"

/* The object file that bpf/Makefile makes. */
__asm__(".section .rodata.bpf_object,\"a\",@progbits\n"
	".balign 16\n"
	"bpf_object_begin: .incbin \"" BPF_OBJECT "\"\n"
	"bpf_object_end:\n"
	".previous");
extern const uint8_t bpf_object_begin[], bpf_object_end[];

static struct ring_buffer *ring;
static int ring_fd = -1;
/* struct tally of bpf/egress.bpf.c: the first word is all that matters here. */
static const volatile uint64_t *suppressed;
/* Where steering_take_attempts puts what the ring hands out. */
static uint8_t *taken;
static size_t taken_bytes, taken_room;

static int print_problem(enum libbpf_print_level level, const char *format, va_list arguments)
{
	/* What the verifier says comes in one piece; its last lines hold the reason. */
	static char text[16384];
	if (level != LIBBPF_WARN)
		return 0;
	vsnprintf(text, sizeof text, format, arguments);
	for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		report("%s", line);
	return 0;
}

static int on_attempt(void *context, void *record, size_t length)
{
	(void)context;
	if (length != CT_ATTEMPT_BYTES)
		return 0;
	memcpy(taken + taken_bytes, record, length);
	taken_bytes += length;
	/* Anything negative ends the round; what has been handed out counts as taken. */
	return taken_room - taken_bytes >= CT_ATTEMPT_BYTES ? 0 : -1;
}

static int map_fd(const struct bpf_object *object, const char *name)
{
	int fd = bpf_object__find_map_fd_by_name(object, name);
	if (fd < 0)
		fatal("the BPF object has no map %s", name);
	return fd;
}

static struct bpf_program *program(const struct bpf_object *object, const char *name)
{
	struct bpf_program *found = bpf_object__find_program_by_name(object, name);
	if (!found)
		fatal("the BPF object has no program %s", name);
	return found;
}

void steering_start(const int listeners[2])
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "egress");
	libbpf_set_print(print_problem);
	struct bpf_object *object =
		bpf_object__open_mem(bpf_object_begin, (size_t)(bpf_object_end - bpf_object_begin), &options);
	if (!object || bpf_object__load(object) != 0)
		fatal("cannot load the BPF programs: %s", strerror(errno));

	int sockets = map_fd(object, "listeners");
	for (uint32_t slot = 0; slot < 2; slot++) {
		uint64_t listener = (uint64_t)listeners[slot];
		if (bpf_map_update_elem(sockets, &slot, &listener, BPF_ANY) < 0)
			fatal("cannot steer to the listeners: %s", strerror(errno));
	}
	int tallies = map_fd(object, "tallies");
	suppressed = mmap(NULL, (size_t)getpagesize(), PROT_READ, MAP_SHARED, tallies, 0);
	ring_fd = map_fd(object, "attempts");
	ring = ring_buffer__new(ring_fd, on_attempt, NULL, NULL);
	if (suppressed == MAP_FAILED || !ring)
		fatal("cannot map what the BPF programs record: %s", strerror(errno));
	if (bpf_map_freeze(sockets) < 0 || bpf_map_freeze(tallies) < 0)
		fatal("cannot freeze the BPF maps: %s", strerror(errno));

	int namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (namespace < 0 || !bpf_program__attach_netns(program(object, "egress_steer"), namespace) ||
	    !bpf_program__attach_lsm(program(object, "egress_socket")))
		fatal("cannot attach the BPF programs: %s", strerror(errno));
	close(namespace);
	/* `object` and the links live as long as PID 1. What the loading needed beside them goes back. */
	malloc_trim(0);
}

int steering_attempts_fd(void)
{
	return ring_fd;
}

size_t steering_take_attempts(uint8_t *records, size_t room)
{
	taken = records;
	taken_bytes = 0;
	taken_room = room;
	ring_buffer__consume(ring);
	return taken_bytes;
}

uint64_t steering_suppressed(void)
{
	return *suppressed;
}
