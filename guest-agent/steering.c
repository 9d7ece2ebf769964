/* The BPF programs of the VM: see steering.h. */
#include "steering.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "console.h"
#include "programs.h"
#include "protocol.h"

/* The object file that bpf/Makefile makes. */
INCLUDE_OBJECT(egress_object, EGRESS_OBJECT);

static struct ring_buffer *ring;
static int ring_fd = -1;
/* struct tally of bpf/egress.bpf.c: the first word is all that matters here. */
static const volatile uint64_t *suppressed;
/* Where steering_take_attempts puts what the ring hands out. */
static uint8_t *taken;
static size_t taken_bytes, taken_room;

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

void steering_start(const int listeners[2])
{
	struct bpf_object *object = programs_open("egress", egress_object_begin, egress_object_end);
	programs_load(object);

	int sockets = programs_map(object, "listeners");
	for (uint32_t slot = 0; slot < 2; slot++) {
		uint64_t listener = (uint64_t)listeners[slot];
		if (bpf_map_update_elem(sockets, &slot, &listener, BPF_ANY) < 0)
			fatal("cannot steer to the listeners: %s", strerror(errno));
	}
	int tallies = programs_map(object, "tallies");
	suppressed = mmap(NULL, (size_t)getpagesize(), PROT_READ, MAP_SHARED, tallies, 0);
	ring_fd = programs_map(object, "attempts");
	ring = ring_buffer__new(ring_fd, on_attempt, NULL, NULL);
	if (suppressed == MAP_FAILED || !ring)
		fatal("cannot map what the BPF programs record: %s", strerror(errno));
	if (bpf_map_freeze(sockets) < 0 || bpf_map_freeze(tallies) < 0)
		fatal("cannot freeze the BPF maps: %s", strerror(errno));

	int namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (namespace < 0 || !bpf_program__attach_netns(programs_find(object, "egress_steer"), namespace) ||
	    !bpf_program__attach_lsm(programs_find(object, "egress_socket")))
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
