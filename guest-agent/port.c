/* Ports to the host: see port.h. */
#include "port.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "console.h"

void port_init(struct port *port, int fd, uint8_t *inbox, size_t inbox_bytes, nghttp2_session *(*start)(void))
{
	port->fd = fd;
	port->inbox = inbox;
	port->inbox_bytes = inbox_bytes;
	port->start = start;
	port->phase = PORT_HELLO;
}

void port_say(struct port *port, const void *bytes, size_t length)
{
	memcpy(port->outbox, bytes, length);
	port->outbox_start = 0;
	port->outbox_end = length;
	port->full = false;
}

void port_finish(struct port *port, enum port_end end)
{
	if (port->phase != PORT_OVER)
		port->end = end;
	port->phase = PORT_OVER;
}

static void take_input(struct port *port, const uint8_t *data, size_t length)
{
	if (port->phase == PORT_HELLO) {
		size_t taken = hello_scan(&port->hello, data, length);
		if (!hello_complete(&port->hello))
			return;
		/* Whatever was still to be said would only confuse; nothing else can be waiting yet. */
		port_say(port, port->hello.bytes, sizeof port->hello.bytes);
		port->session = port->start();
		port->phase = PORT_OPEN;
		data += taken;
		length -= taken;
	}
	if (port->phase != PORT_OPEN || length == 0)
		return;
	ssize_t result = nghttp2_session_mem_recv(port->session, data, length);
	if (result < 0) {
		report("the host broke the protocol: %s", nghttp2_strerror((int)result));
		port_finish(port, PORT_PROTOCOL_ERROR);
	}
}

/* The kernel fills one part after another, and stops at the first that it cannot fill: what has come lies in one piece. */
static ssize_t read_buffers(int fd, uint8_t *to, size_t room)
{
	struct iovec parts[PORT_READ_PARTS];
	size_t count = 0;
	for (; count < PORT_READ_PARTS && (count + 1) * PORT_READ_BYTES <= room; count++)
		parts[count] = (struct iovec){ to + count * PORT_READ_BYTES, PORT_READ_BYTES };
	return readv(fd, parts, (int)count);
}

bool port_read(struct port *port)
{
	size_t have = 0;
	bool more = false, hung_up = false;
	if (port->phase == PORT_OVER)
		return false;
	for (;;) {
		more = port->inbox_bytes - have < PORT_READ_BYTES;
		if (more)
			break;
		ssize_t got = read_buffers(port->fd, port->inbox + have, port->inbox_bytes - have);
		if (got > 0) {
			have += (size_t)got;
			continue;
		}
		if (got < 0 && errno == EINTR)
			continue;
		hung_up = got == 0 || errno != EAGAIN;
		break;
	}
	if (have > 0)
		take_input(port, port->inbox, have);
	if (more || port->phase != PORT_OPEN)
		return more;
	/* Otherwise a virtio port without a host, which reads 0 bytes: that is how a pooled guest waits. */
	if (hung_up && port->host_seen)
		port_finish(port, PORT_HUNG_UP);
	else if (!hung_up)
		port->host_seen = true;
	return false;
}

static void fill_outbox(struct port *port)
{
	port->outbox_start = port->outbox_end = 0;
	while (port->outbox_end < sizeof port->outbox) {
		if (port->frame_rest_bytes == 0) {
			ssize_t length = nghttp2_session_mem_send(port->session, &port->frame_rest);
			if (length < 0) {
				port_finish(port, PORT_PROTOCOL_ERROR);
				return;
			}
			if (length == 0)
				return;
			port->frame_rest_bytes = (size_t)length;
		}
		size_t take = sizeof port->outbox - port->outbox_end;
		if (take > port->frame_rest_bytes)
			take = port->frame_rest_bytes;
		memcpy(port->outbox + port->outbox_end, port->frame_rest, take);
		port->outbox_end += take;
		port->frame_rest += take;
		port->frame_rest_bytes -= take;
	}
}

void port_write(struct port *port)
{
	while (port->phase != PORT_OVER && !port->full) {
		if (port->outbox_start == port->outbox_end) {
			if (port->phase != PORT_OPEN)
				return;
			fill_outbox(port);
			if (port->outbox_start == port->outbox_end) {
				/* One side has said good-bye, most likely because of a frame that makes no sense. */
				if (!nghttp2_session_want_read(port->session) && !nghttp2_session_want_write(port->session))
					port_finish(port, PORT_PROTOCOL_ERROR);
				return;
			}
		}
		ssize_t written =
			write(port->fd, port->outbox + port->outbox_start, port->outbox_end - port->outbox_start);
		if (written > 0) {
			port->host_seen = port->phase == PORT_OPEN;
			port->outbox_start += (size_t)written;
			continue;
		}
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0 && (errno == EAGAIN || !port->host_seen)) {
			port->full = true;
			return;
		}
		port_finish(port, PORT_HUNG_UP);
	}
}

int port_timeout_ms(const struct port *port)
{
	if (port->host_seen)
		return -1;
	return port->phase == PORT_HELLO ? PORT_IDLE_RETRY_MS : PORT_HELLO_RETRY_MS;
}

void port_retry(struct port *port)
{
	if (!port->host_seen)
		port->full = false;
}

bool port_drained(const struct port *port)
{
	return port->outbox_start == port->outbox_end && port->frame_rest_bytes == 0 && !port->full &&
	       !nghttp2_session_want_write(port->session);
}

static ssize_t frame_length(nghttp2_session *session, uint8_t type, int32_t id, int32_t session_window,
			    int32_t stream_window, uint32_t max_frame, void *context)
{
	(void)session;
	(void)type;
	(void)id;
	(void)context;
	ssize_t length = PORT_FRAME_BYTES;
	if (length > session_window)
		length = session_window;
	if (length > stream_window)
		length = stream_window;
	if (length > (ssize_t)max_frame)
		length = (ssize_t)max_frame;
	return length;
}

nghttp2_session *port_session(enum port_side side, const struct port_events *events,
			      const nghttp2_settings_entry *settings, size_t setting_count, int32_t window_bytes)
{
	nghttp2_session *session;
	nghttp2_session_callbacks *callbacks;
	nghttp2_option *option;
	if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0)
		fatal("no memory for the session");
	if (events->begin_headers)
		nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, events->begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, events->header);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, events->frame);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, events->data);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, events->closed);
	nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, frame_length);
	/* Credit follows what was really taken. */
	nghttp2_option_set_no_auto_window_update(option, 1);
	/* Closed streams need not be remembered: priorities mean nothing here. */
	nghttp2_option_set_no_closed_streams(option, 1);
	int made = side == PORT_SERVER ? nghttp2_session_server_new2(&session, callbacks, NULL, option)
				       : nghttp2_session_client_new2(&session, callbacks, NULL, option);
	if (made != 0)
		fatal("no memory for the session");
	nghttp2_option_del(option);
	nghttp2_session_callbacks_del(callbacks);
	if (nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, setting_count) != 0 ||
	    nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, window_bytes) != 0)
		fatal("cannot start the session");
	return session;
}
