/*
 * The session with the host: readiness, nonce handshake, HTTP/2 server, and the event loop everything runs in.
 * docs/guest-link.md is the contract.
 */
#ifndef CT_LINK_H
#define CT_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "port.h"
#include "volume.h"

struct link_options {
	int control_fd; /* Non-blocking; a virtio-serial port or a socket. */
	int cgroup_fd;	/* The job's cgroup, or -1: processes then stay where they are. */
	int script_fd;	/* Where step scripts go. */
	int secret_fd;	/* Where secrets go that are files. */
	/* The helpers; when one ends, so does the session. -1: there is none. */
	int egress_pidfd;
	int audit_pidfd;
	/* The text of GET /v1/audit; NULL: nothing is recorded. */
	void (*audit_position)(char *text, size_t size);
	struct job_user user;
};

/* Serves one session and returns why it ended. Processes of the job may still be alive then. */
enum port_end link_serve(const struct link_options *options);

/* --- For exec.c: something that wants to know when a descriptor becomes ready (edge-triggered). --- */

struct source {
	void (*ready)(struct source *source, uint32_t events);
};

/* Returns 0 or -1 (errno). */
int loop_add(struct source *source, int fd, uint32_t events);
void loop_remove(int fd);

/* --- For exec.c: one request and its response. --- */

struct stream;

/* Sends the status line of a response that records will follow. */
void stream_respond(struct stream *stream);

/*
 * Space for at least one byte of a record's payload in the stream's buffer, or NULL while the host has not read
 * enough; the loop calls exec_run again when it has. Fill in up to `room` bytes, then commit them.
 */
uint8_t *stream_reserve(struct stream *stream, size_t *room);
void stream_commit(struct stream *stream, uint8_t type, size_t length);

/* A short record; there is always room for these (a handful per stream). */
void stream_record(struct stream *stream, uint8_t type, const void *payload, size_t length);

/* No more output: the response ends with what is in the buffer. */
void stream_finish(struct stream *stream);

/* Gives the host credit for that many bytes of input that are no longer held. */
void stream_consume(struct stream *stream, size_t length);

#endif
