/* The network of the VM: see network.h. Messages are those of rtnetlink(7). */
#include "network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "console.h"
#include "files.h"

/* The kernel's own limit for what waits to be accepted (net.core.somaxconn). */
#define BACKLOG 4096
/*
 * What the kernel may hold for a job or a host that does not read, rather than the megabytes that it would come to by
 * itself; it doubles both for its own overhead (socket(7)). The helper's cgroup has room for all its connections.
 */
#define SEND_BUFFER_BYTES (64 * 1024)
#define RECEIVE_BUFFER_BYTES (128 * 1024)
/* Any will do: connections come by steering, whatever port they ask for. */
#define LISTENER_PORT 1
#define LISTENER_IPV6 "fd63:7463::1"

struct message {
	struct nlmsghdr header;
	uint8_t body[128];
};

static void *grow(struct message *message, size_t length)
{
	void *place = (uint8_t *)message + NLMSG_ALIGN(message->header.nlmsg_len);
	message->header.nlmsg_len = (uint32_t)(NLMSG_ALIGN(message->header.nlmsg_len) + length);
	return place;
}

static void add_attribute(struct message *message, unsigned short type, const void *value, size_t length)
{
	struct rtattr *attribute = grow(message, RTA_LENGTH(length));
	attribute->rta_type = type;
	attribute->rta_len = (unsigned short)RTA_LENGTH(length);
	memcpy(RTA_DATA(attribute), value, length);
}

static void begin(struct message *message, uint16_t type)
{
	memset(message, 0, sizeof *message);
	message->header.nlmsg_len = NLMSG_LENGTH(0);
	message->header.nlmsg_type = type;
	message->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
}

static void send_message(int fd, struct message *message, const char *what)
{
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		uint8_t rest[256];
	} answer;
	ssize_t got = -1;
	if (send(fd, message, message->header.nlmsg_len, 0) >= 0)
		got = recv(fd, &answer, sizeof answer, 0);
	if (got < 0)
		fatal("%s: %s", what, strerror(errno));
	if ((size_t)got < sizeof answer.header + sizeof answer.error || answer.header.nlmsg_type != NLMSG_ERROR ||
	    answer.error.error != 0)
		fatal("%s: %s", what, strerror(-answer.error.error));
}

static size_t parse_address(int family, const char *text, uint8_t address[16])
{
	if (inet_pton(family, text, address) != 1)
		fatal("%s is no address", text);
	return family == AF_INET ? 4 : 16;
}

static void add_address(int fd, unsigned lo, int family, const char *text)
{
	struct message message;
	uint8_t address[16];
	size_t length = parse_address(family, text, address);
	begin(&message, RTM_NEWADDR);
	struct ifaddrmsg *body = grow(&message, sizeof *body);
	body->ifa_family = (uint8_t)family;
	body->ifa_prefixlen = (uint8_t)(8 * length);
	body->ifa_flags = IFA_F_NODAD | IFA_F_PERMANENT;
	body->ifa_index = lo;
	add_attribute(&message, IFA_LOCAL, address, length);
	add_attribute(&message, IFA_ADDRESS, address, length);
	send_message(fd, &message, "cannot give lo an address");
}

/* `ip route add local 0.0.0.0/0 dev lo table local src ADDRESS`, and the same for IPv6. */
static void make_everything_local(int fd, unsigned lo, int family, const char *source)
{
	struct message message;
	uint8_t address[16];
	size_t length = parse_address(family, source, address);
	begin(&message, RTM_NEWROUTE);
	struct rtmsg *body = grow(&message, sizeof *body);
	body->rtm_family = (uint8_t)family;
	body->rtm_table = RT_TABLE_LOCAL;
	body->rtm_protocol = RTPROT_BOOT;
	body->rtm_scope = family == AF_INET ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE;
	body->rtm_type = RTN_LOCAL;
	add_attribute(&message, RTA_OIF, &lo, sizeof lo);
	add_attribute(&message, RTA_PREFSRC, address, length);
	send_message(fd, &message, "cannot route everything to lo");
}

static int open_socket(int family, int type, const char *text, uint16_t port)
{
	const int yes = 1;
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	bool is_v4 = family == AF_INET;
	int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || inet_pton(family, text, is_v4 ? (void *)&v4.sin_addr : (void *)&v6.sin6_addr) != 1 ||
	    /* Local, but no address of a device. */
	    (!is_v4 && setsockopt(fd, IPPROTO_IPV6, IPV6_FREEBIND, &yes, sizeof yes) < 0) ||
	    bind(fd, is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6, is_v4 ? sizeof v4 : sizeof v6) < 0)
		fatal("cannot bind a socket to %s port %d: %s", text, port, strerror(errno));
	return fd;
}

static int open_listener(int family, const char *text)
{
	const int yes = 1, send_bytes = SEND_BUFFER_BYTES, receive_bytes = RECEIVE_BUFFER_BYTES;
	int fd = open_socket(family, SOCK_STREAM, text, LISTENER_PORT);
	/* Accepted sockets inherit these. */
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &send_bytes, sizeof send_bytes) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_bytes, sizeof receive_bytes) < 0 || listen(fd, BACKLOG) < 0)
		fatal("cannot listen on %s: %s", text, strerror(errno));
	return fd;
}

/*
 * By default all of TCP shares a tenth of the memory, which a hundred connections that nobody reads from fill: then the
 * others stand still, too. Here everything that a job downloads is in such buffers.
 */
static void allow_buffers(void)
{
	struct sysinfo memory;
	char text[64];
	if (sysinfo(&memory) < 0)
		fatal("sysinfo: %s", strerror(errno));
	unsigned long long pages = (unsigned long long)memory.totalram * memory.mem_unit / (unsigned)getpagesize();
	snprintf(text, sizeof text, "%llu %llu %llu", pages / 4, pages / 3, pages / 2);
	if (file_write("/proc/sys/net/ipv4/tcp_mem", text, strlen(text)) < 0)
		fatal("cannot write tcp_mem: %s", strerror(errno));
	/* egress.c: LARGE_SEND_BUFFER_BYTES. */
	if (file_write("/proc/sys/net/core/wmem_max", "524288", 6) < 0)
		fatal("cannot write wmem_max: %s", strerror(errno));
}

void network_configure(struct network_sockets *sockets)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	unsigned lo = if_nametoindex("lo");
	if (fd < 0 || lo == 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		fatal("cannot bring up lo: %s", strerror(errno));
	close(fd);
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		fatal("cannot open rtnetlink: %s", strerror(errno));
	allow_buffers();
	add_address(fd, lo, AF_INET, OWN_ADDRESS_IPV4);
	add_address(fd, lo, AF_INET6, OWN_ADDRESS_IPV6);
	make_everything_local(fd, lo, AF_INET, OWN_ADDRESS_IPV4);
	make_everything_local(fd, lo, AF_INET6, OWN_ADDRESS_IPV6);
	close(fd);
	sockets->listeners[0] = open_listener(AF_INET, RESOLVER_ADDRESS);
	sockets->listeners[1] = open_listener(AF_INET6, LISTENER_IPV6);
	sockets->resolver = open_socket(AF_INET, SOCK_DGRAM, RESOLVER_ADDRESS, 53);
}
