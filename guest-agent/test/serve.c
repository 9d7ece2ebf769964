/*
 * The guest agent's link, exec and tree code as an ordinary process, for test/integration/guest-agent.test.ts: serves
 * the socket it finds as descriptor 3 and keeps step scripts and secrets in the directory argv[1].
 */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "link.h"

int main(int argument_count, char **arguments)
{
	if (argument_count != 2)
		return 2;
	/* What the test runner left open would show up in the programs of the test. */
	close_range(4, ~0U, 0);
	struct link_options options = {
		.control_fd = 3,
		.cgroup_fd = -1,
		.script_fd = open(arguments[1], O_PATH | O_DIRECTORY | O_CLOEXEC),
		.secret_fd = open(arguments[1], O_PATH | O_DIRECTORY | O_CLOEXEC),
		.egress_pidfd = -1,
		.audit_pidfd = -1,
		.user = { .uid = getuid(), .gid = getgid(), .home = "/" },
	};
	if (options.script_fd < 0 || options.secret_fd < 0 || fcntl(3, F_SETFL, O_RDWR | O_NONBLOCK) < 0 || fcntl(3, F_SETFD, FD_CLOEXEC) < 0)
		return 2;
	return (int)link_serve(&options);
}
