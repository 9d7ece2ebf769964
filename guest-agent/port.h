/*
 * One port to the host: whatever is said before the session, the nonce handshake, and the bytes of an HTTP/2 session in
 * both directions. docs/guest-link.md is the contract. The owner brings the session and an edge-triggered epoll.
 */
#ifndef CT_PORT_H
#define CT_PORT_H

#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hello.h"

/* virtio_console hands out at most one 4 KiB buffer per read and takes at most 32 KiB per write. */
#define PORT_READ_BYTES 4096
/* So many buffers with one system call. */
#define PORT_READ_PARTS 16
#define PORT_WRITE_BYTES 32768
/* Before a session: a second look at the port in case its wake-up was lost in a snapshot. */
#define PORT_IDLE_RETRY_MS 2000
/* The same between the hello and the first sign that the port is open. */
#define PORT_HELLO_RETRY_MS 20
/* A DATA frame that fills one write together with its header. */
#define PORT_FRAME_BYTES (PORT_WRITE_BYTES - 9)

/* Edge-triggered: a virtio port without a host reports a hang-up all the time, and a level-triggered loop would spin. */
#define PORT_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

enum port_phase { PORT_HELLO, PORT_OPEN, PORT_OVER };
enum port_end { PORT_HUNG_UP, PORT_PROTOCOL_ERROR, PORT_DONE };

struct port {
	int fd;
	enum port_phase phase;
	enum port_end end;
	/* Called once, when the host has said hello. */
	nghttp2_session *(*start)(void);
	nghttp2_session *session;
	struct hello hello;
	bool full;
	/*
	 * Whether the port has shown since the hello that a host is there. After a restore the host's first bytes can come
	 * before the kernel has learnt that a host has opened the port; reading then gives 0, as after a hang-up.
	 */
	bool host_seen;
	/* Bytes for the port, and the rest of the last thing nghttp2 wants sent. */
	size_t outbox_start;
	size_t outbox_end;
	const uint8_t *frame_rest;
	size_t frame_rest_bytes;
	uint8_t outbox[PORT_WRITE_BYTES];
	/*
	 * A turn's input, so that frames reach the session in few pieces. Its size is the budget of a turn: a host that
	 * sends without end must not keep everything else waiting.
	 */
	uint8_t *inbox;
	size_t inbox_bytes;
};

/* `fd` is non-blocking: a virtio-serial port or a socket. The inbox is a multiple of PORT_READ_BYTES. */
void port_init(struct port *port, int fd, uint8_t *inbox, size_t inbox_bytes, nghttp2_session *(*start)(void));

/* A few bytes to say before the session. */
void port_say(struct port *port, const void *bytes, size_t length);

/* Hands what the host sent to the session. Returns whether the budget ended before the input did. */
bool port_read(struct port *port);

/* Writes until the port is full or the session has nothing to say. */
void port_write(struct port *port);

/* How long the loop may sleep, -1 for as long as it likes. If nothing has happened by then: port_retry, port_read. */
int port_timeout_ms(const struct port *port);
void port_retry(struct port *port);

/* Nothing is left to send. Legal while the port is open. */
bool port_drained(const struct port *port);

/* The first reason counts. */
void port_finish(struct port *port, enum port_end end);

/* What an owner hears of its session. */
struct port_events {
	/* NULL for a client, which makes its streams itself. */
	nghttp2_on_begin_headers_callback begin_headers;
	nghttp2_on_header_callback header;
	nghttp2_on_frame_recv_callback frame;
	nghttp2_on_data_chunk_recv_callback data;
	nghttp2_on_stream_close_callback closed;
};

enum port_side { PORT_CLIENT, PORT_SERVER };

/* A session in which credit is given back by hand, and DATA frames fill a write of the port. */
nghttp2_session *port_session(enum port_side side, const struct port_events *events,
			      const nghttp2_settings_entry *settings, size_t setting_count, int32_t window_bytes);

#endif
