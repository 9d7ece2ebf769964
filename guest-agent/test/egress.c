/*
 * The guest agent's egress code as an ordinary process, for test/integration/guest-agent-egress.test.ts: serves the
 * socket it finds as descriptor 3, and prints the ports of its listeners (IPv4, IPv6) and of its resolver.
 */
#include "egress.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_socket(int family, int type)
{
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr *address = family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
	socklen_t length = family == AF_INET ? sizeof v4 : sizeof v6;
	int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, address, length) < 0 || (type == SOCK_STREAM && listen(fd, 128) < 0) ||
	    getsockname(fd, address, &length) < 0)
		_exit(3);
	printf("%d\n", ntohs(family == AF_INET ? v4.sin_port : v6.sin6_port));
	return fd;
}

int main(void)
{
	struct egress_options options = {
		.port_fd = 3,
		.listener_fds = { open_socket(AF_INET, SOCK_STREAM), open_socket(AF_INET6, SOCK_STREAM) },
		.resolver_fd = open_socket(AF_INET, SOCK_DGRAM),
		.attempts_fd = -1,
	};
	if (fcntl(3, F_SETFL, O_RDWR | O_NONBLOCK) < 0 || fflush(stdout) != 0)
		return 3;
	return (int)egress_serve(&options);
}
