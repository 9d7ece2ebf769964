/*
 * The guest's half of egress: an HTTP/2 client on the port ct.egress, which opens a CONNECT for every connection of the
 * job, passes DNS messages on as they are, and tells what else was tried. Parses nothing that a job says.
 * docs/guest-link.md is the contract.
 */
#ifndef CT_EGRESS_H
#define CT_EGRESS_H

#include <stddef.h>
#include <stdint.h>

#include "port.h"

/* All descriptors are non-blocking. */
struct egress_options {
	int port_fd;
	int listener_fds[2]; /* IPv4, IPv6. */
	int resolver_fd;
	int attempts_fd; /* -1: nothing is recorded, and the functions are not called. */
	size_t (*take_attempts)(uint8_t *records, size_t room);
	uint64_t (*suppressed)(void);
};

/*
 * Connections of the job at once; more wait to be accepted. With the windows (egress.c) this bounds the helper's memory.
 */
#define EGRESS_MAX_CONNECTIONS 1024

/* The system calls it makes, with those of the C library's memory allocator. */
extern const unsigned egress_calls[];
extern const size_t egress_call_count;

/* Serves one session and returns why it ended. Until the host says hello, connections and questions wait. */
enum port_end egress_serve(const struct egress_options *options);

#endif
