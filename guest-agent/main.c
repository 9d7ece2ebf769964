/* The guest agent: PID 1 of every VM. Boots the guest, then serves the host until the VM ends. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "boot.h"
#include "console.h"
#include "exec.h"
#include "link.h"
#include "volume.h"

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
		.user = booted.user,
	};
	enum link_end end = link_serve(&options);
	/* Nobody is left to work for: the job must not go on unwatched. */
	if (end != LINK_SHUT_DOWN) {
		exec_kill_all();
		volume_close();
	}
	power_off();
}
