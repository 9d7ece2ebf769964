/* The guest agent: PID 1 of every VM. Boots the guest, then serves the host until the VM ends. */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "boot.h"
#include "console.h"
#include "exec.h"
#include "link.h"
#include "tracing.h"
#include "volume.h"

/* What requests usually need: a stream's buffer, an exec's setup and stack, nghttp2's tables. */
#define WARM_HEAP_BYTES (1024 * 1024)

/*
 * Takes the page faults of the first requests before the snapshot: right after a restore each of them runs through
 * code that the emulator has not translated yet. Locked, because nobody could page the guest agent in again in a
 * guest whose memory the job has used up.
 */
static void warm_memory(void)
{
	mallopt(M_MMAP_THRESHOLD, WARM_HEAP_BYTES);
	mallopt(M_TRIM_THRESHOLD, 2 * WARM_HEAP_BYTES);
	char *heap = malloc(WARM_HEAP_BYTES - 4096);
	if (heap)
		memset(heap, 1, WARM_HEAP_BYTES - 4096);
	/* The compiler must not see through this. */
	__asm__ volatile("" : : "r"(heap) : "memory");
	free(heap);
	if (mlockall(MCL_CURRENT) < 0)
		report("cannot lock the guest agent's memory: %s", strerror(errno));
}

int main(void)
{
	if (getpid() != 1)
		return 1;
	struct boot_result booted;
	boot(&booted);
	struct link_options options = {
		.control_fd = booted.control_fd,
		.cgroup_fd = booted.cgroup_fd,
		.script_fd = booted.script_fd,
		.secret_fd = booted.secret_fd,
		.egress_pidfd = booted.egress_pidfd,
		.audit_pidfd = booted.audit_pidfd,
		.audit_position = tracing_position,
		.user = booted.user,
	};
	warm_memory();
	enum port_end end = link_serve(&options);
	/* Nobody is left to work for: the job must not go on unwatched. */
	if (end != PORT_DONE) {
		exec_kill_all();
		volume_close();
	}
	power_off();
}
