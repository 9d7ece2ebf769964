/*
 * Egress: see egress.h. One thread, one edge-triggered epoll. Buffers are held only for bytes that have no place to go:
 * what a job sends is read when the host has room for it, and what the host sends goes straight to the job's socket.
 */
#include "egress.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "console.h"
#include "protocol.h"
#include "records.h"

/*
 * Of one turn of the loop: as much as a virtio port may hold. What arrives together is written together, and the fewer
 * the writes, the more gets through: twice as much as with a quarter of it.
 */
#define INBOX_BYTES (512 * 1024)
/* Connection credit is given back on arrival, so one stalled stream cannot starve the others. */
#define SESSION_WINDOW_BYTES (16 * 1024 * 1024)
/*
 * A job that does not read makes the helper hold a window's worth for each connection. So every connection has the
 * protocol's initial window, and a few that really carry much get a larger one: 96 MiB at the very worst.
 */
#define LARGE_WINDOW_BYTES (2 * 1024 * 1024)
#define LARGE_WINDOW_AFTER_BYTES (256 * 1024)
#define MAX_LARGE_WINDOWS 16
/* Their sockets hold more, too: a turn's input and more in one write. network.c lets them. */
#define LARGE_SEND_BUFFER_BYTES (512 * 1024)
/* Frames of one turn: Node.js sends 16 KiB in each. */
#define MAX_PARTS 64
#define MAX_QUERIES 64
/* Streams for DNS and reports, beside those of connections. */
#define OTHER_STREAMS (MAX_QUERIES + 1)
/* As many attempts as the ring of bpf/egress.bpf.c holds, and one record that counts the rest. */
#define REPORT_BYTES (16384 / CT_ATTEMPT_BYTES * CT_ATTEMPT_BYTES)
/* How long after a report to look whether more was suppressed; of that nothing wakes the helper. */
#define SUPPRESSED_CHECK_US 1100000

const unsigned egress_calls[] = {
	SYS_read,	  SYS_readv,	     SYS_write,	      SYS_close,      SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl,
	SYS_epoll_create1, SYS_accept4,	     SYS_getsockname, SYS_setsockopt, SYS_shutdown,   SYS_recvfrom,	   SYS_sendto,
	SYS_sendmsg,	  SYS_brk,	     SYS_mmap,	      SYS_munmap,     SYS_mremap,     SYS_madvise,	   SYS_clock_gettime,
	SYS_exit_group,
};
const size_t egress_call_count = sizeof egress_calls / sizeof egress_calls[0];

/* What an epoll event or a stream belongs to: the first member of everything here. */
enum kind { KIND_PORT, KIND_LISTENER, KIND_RESOLVER, KIND_ATTEMPTS, KIND_CONNECTION, KIND_QUERY, KIND_REPORT };

struct exchange {
	enum kind kind;
	int32_t id; /* 0: no stream (any more). */
	bool succeeded;
	bool ended; /* The host has sent all of its side. */
};

struct connection {
	struct exchange exchange;
	int fd;
	bool deferred; /* nghttp2 waits for nghttp2_session_resume_data. */
	bool large_window;
	size_t received;
	/* From the host, for a job that does not read. */
	uint8_t *rest;
	size_t rest_start;
	size_t rest_end;
	size_t rest_room;
	struct connection *next_closed;
};

struct query {
	struct exchange exchange;
	struct sockaddr_in from;
	size_t sent;
	size_t length;
	bool oversized;
	uint8_t message[CT_MAX_DNS_MESSAGE_BYTES]; /* The question; then the answer. */
};

static const struct egress_options *options;
static int epoll_fd = -1;
static struct port port;
static uint8_t inbox[INBOX_BYTES];
static nghttp2_session *session;

static size_t connections;
static size_t large_windows;
static size_t queries;
/* Edge-triggered: remembers that somebody waits there whom there was no room for. */
static bool listener_ready[2] = { true, true };
static bool resolver_ready = true;
static bool attempts_ready = true;
/*
 * What one connection got in this turn, where the port has read it to: many small frames become one large write. Each
 * write wakes the job, and under emulation that costs more than all the rest.
 */
static struct {
	struct connection *connection;
	struct iovec parts[MAX_PARTS];
	size_t count;
	size_t bytes;
} gathered;
/* An event of this turn may still point to them. */
static struct connection *closed_connections;

static struct exchange report_exchange = { .kind = KIND_REPORT };
static uint8_t report_records[REPORT_BYTES + CT_ATTEMPT_BYTES];
static size_t report_sent, report_length;
static uint64_t suppressed_told;
static uint64_t suppressed_check_us;

/* --- Connections --- */

/* Gives the descriptor up; the stream, if any, is the caller's business. */
static void close_connection(struct connection *connection, bool reset)
{
	if (gathered.connection == connection)
		gathered.connection = NULL;
	if (reset) {
		/* socket(7): close then sends RST. */
		struct linger linger = { .l_onoff = 1, .l_linger = 0 };
		setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
	}
	close(connection->fd);
	connection->fd = -1;
	free(connection->rest);
	connection->rest = NULL;
	if (connection->large_window)
		large_windows--;
	connections--;
	connection->next_closed = closed_connections;
	closed_connections = connection;
}

static void detach(struct connection *connection)
{
	nghttp2_session_set_stream_user_data(session, connection->exchange.id, NULL);
	connection->exchange.id = 0;
}

/* RFC 9113, 8.5: an error of the TCP connection resets the stream. */
static void fail_connection(struct connection *connection, uint32_t error)
{
	if (connection->exchange.id) {
		nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, connection->exchange.id, error);
		detach(connection);
	}
	close_connection(connection, true);
}

static bool has_rest(const struct connection *connection)
{
	return connection->rest_start < connection->rest_end;
}

/* Bytes the job's socket took, or -1 if it is broken. */
static ssize_t send_to_job(struct connection *connection, struct iovec *parts, size_t count)
{
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = count };
	ssize_t sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (sent < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS))
		return 0;
	return sent;
}

/* The host has ended its side and the job has all of it. */
static void end_to_job(struct connection *connection)
{
	if (connection->exchange.id == 0)
		close_connection(connection, false);
	else
		shutdown(connection->fd, SHUT_WR);
}

static bool keep_rest(struct connection *connection, const uint8_t *data, size_t length)
{
	size_t have = connection->rest_end - connection->rest_start;
	if (connection->rest_start > 0) {
		memmove(connection->rest, connection->rest + connection->rest_start, have);
		connection->rest_start = 0;
		connection->rest_end = have;
	}
	if (have + length > connection->rest_room) {
		uint8_t *larger = realloc(connection->rest, have + length);
		if (!larger)
			return false;
		connection->rest = larger;
		connection->rest_room = have + length;
	}
	memcpy(connection->rest + have, data, length);
	connection->rest_end += length;
	return true;
}

static void widen_window(struct connection *connection, size_t length)
{
	connection->received += length;
	if (connection->large_window || connection->received < LARGE_WINDOW_AFTER_BYTES ||
	    large_windows == MAX_LARGE_WINDOWS)
		return;
	connection->large_window = true;
	large_windows++;
	nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, connection->exchange.id, LARGE_WINDOW_BYTES);
	const int send_bytes = LARGE_SEND_BUFFER_BYTES;
	setsockopt(connection->fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
}

static void pass_gathered(void)
{
	struct connection *connection = gathered.connection;
	if (!connection)
		return;
	gathered.connection = NULL;
	ssize_t sent = has_rest(connection) ? 0 : send_to_job(connection, gathered.parts, gathered.count);
	size_t skip = sent < 0 ? 0 : (size_t)sent;
	bool kept = sent >= 0;
	for (size_t index = 0; kept && index < gathered.count; index++) {
		struct iovec *part = &gathered.parts[index];
		if (skip < part->iov_len)
			kept = keep_rest(connection, (uint8_t *)part->iov_base + skip, part->iov_len - skip);
		skip -= skip < part->iov_len ? skip : part->iov_len;
	}
	if (!kept) {
		fail_connection(connection, NGHTTP2_CONNECT_ERROR);
		return;
	}
	nghttp2_session_consume_stream(session, connection->exchange.id, (size_t)sent);
	widen_window(connection, gathered.bytes);
}

static void gather(struct connection *connection, const uint8_t *data, size_t length)
{
	if (gathered.connection != connection || gathered.count == MAX_PARTS) {
		pass_gathered();
		if (connection->fd < 0)
			return;
		gathered.connection = connection;
		gathered.count = gathered.bytes = 0;
	}
	gathered.parts[gathered.count++] = (struct iovec){ (void *)data, length };
	gathered.bytes += length;
}

static void flush_rest(struct connection *connection)
{
	while (has_rest(connection)) {
		struct iovec rest = { connection->rest + connection->rest_start,
				      connection->rest_end - connection->rest_start };
		ssize_t sent = send_to_job(connection, &rest, 1);
		if (sent == 0)
			return;
		if (sent < 0) {
			fail_connection(connection, NGHTTP2_CONNECT_ERROR);
			return;
		}
		connection->rest_start += (size_t)sent;
		if (connection->exchange.id)
			nghttp2_session_consume_stream(session, connection->exchange.id, (size_t)sent);
	}
	free(connection->rest);
	connection->rest = NULL;
	connection->rest_start = connection->rest_end = connection->rest_room = 0;
	if (connection->exchange.ended)
		end_to_job(connection);
}

/* nghttp2 has room for bytes of the job. */
static ssize_t read_from_job(nghttp2_session *unused, int32_t id, uint8_t *buffer, size_t length, uint32_t *flags,
			     nghttp2_data_source *source, void *context)
{
	(void)unused;
	(void)id;
	(void)context;
	struct connection *connection = source->ptr;
	ssize_t got = -1;
	if (connection->exchange.id == 0)
		return NGHTTP2_ERR_DEFERRED; /* Being reset. */
	errno = EAGAIN;
	if (connection->exchange.succeeded)
		got = recv(connection->fd, buffer, length, MSG_DONTWAIT);
	if (got > 0)
		return got;
	if (got == 0) {
		*flags |= NGHTTP2_DATA_FLAG_EOF;
		return 0;
	}
	if (errno == EAGAIN || errno == EINTR)
		connection->deferred = true;
	else
		fail_connection(connection, NGHTTP2_CONNECT_ERROR);
	return NGHTTP2_ERR_DEFERRED;
}

static void resume(struct connection *connection)
{
	if (!connection->deferred)
		return;
	connection->deferred = false;
	nghttp2_session_resume_data(session, connection->exchange.id);
}

static void connection_ready(struct connection *connection, uint32_t events)
{
	if (connection->fd < 0)
		return;
	if (events & EPOLLERR) {
		fail_connection(connection, NGHTTP2_CONNECT_ERROR);
		return;
	}
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP))
		resume(connection);
	if ((events & EPOLLOUT) && has_rest(connection))
		flush_rest(connection);
}

static nghttp2_nv header(const char *name, const char *value)
{
	return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE };
}

/* `192.0.2.1:443` or `[2001:db8::1]:443`: where the job wanted to go. */
static bool destination(int fd, char *text, size_t size)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} address;
	char host[INET6_ADDRSTRLEN];
	socklen_t length = sizeof address;
	if (getsockname(fd, &address.any, &length) < 0)
		return false;
	if (address.any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &address.v4.sin_addr, host, sizeof host);
		snprintf(text, size, "%s:%u", host, ntohs(address.v4.sin_port));
	} else if (IN6_IS_ADDR_V4MAPPED(&address.v6.sin6_addr)) {
		inet_ntop(AF_INET, address.v6.sin6_addr.s6_addr + 12, host, sizeof host);
		snprintf(text, size, "%s:%u", host, ntohs(address.v6.sin6_port));
	} else {
		inet_ntop(AF_INET6, &address.v6.sin6_addr, host, sizeof host);
		snprintf(text, size, "[%s]:%u", host, ntohs(address.v6.sin6_port));
	}
	return true;
}

static void open_connection(int fd)
{
	char authority[INET6_ADDRSTRLEN + 16];
	struct connection *connection = calloc(1, sizeof *connection);
	connections++;
	if (!connection) {
		close(fd);
		connections--;
		return;
	}
	connection->exchange.kind = KIND_CONNECTION;
	connection->fd = fd;
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection };
	if (!destination(fd, authority, sizeof authority) || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
		close_connection(connection, true);
		return;
	}
	nghttp2_nv headers[] = { header(":method", "CONNECT"), header(":authority", authority) };
	nghttp2_data_provider provider = { .source.ptr = connection, .read_callback = read_from_job };
	int32_t id = nghttp2_submit_request(session, NULL, headers, 2, &provider, connection);
	if (id < 0) {
		close_connection(connection, true);
		return;
	}
	connection->exchange.id = id;
}

static size_t connection_limit(void)
{
	uint32_t remote = nghttp2_session_get_remote_settings(session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
	if (remote <= OTHER_STREAMS)
		return 1;
	return remote - OTHER_STREAMS < EGRESS_MAX_CONNECTIONS ? remote - OTHER_STREAMS : EGRESS_MAX_CONNECTIONS;
}

static void accept_connections(size_t which)
{
	size_t limit = connection_limit();
	while (listener_ready[which] && connections < limit) {
		int fd = accept4(options->listener_fds[which], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0)
			open_connection(fd);
		else if (errno == EAGAIN)
			listener_ready[which] = false;
		else if (errno != EINTR && errno != ECONNABORTED)
			return; /* Short of something that the end of a connection gives back. */
	}
}

/* --- Questions and reports --- */

static ssize_t read_query(nghttp2_session *unused, int32_t id, uint8_t *buffer, size_t length, uint32_t *flags,
			  nghttp2_data_source *source, void *context)
{
	(void)unused;
	(void)id;
	(void)context;
	struct query *query = source->ptr;
	size_t take = query->length - query->sent;
	if (take > length)
		take = length;
	memcpy(buffer, query->message + query->sent, take);
	query->sent += take;
	if (query->sent == query->length) {
		*flags |= NGHTTP2_DATA_FLAG_EOF;
		query->length = 0; /* The answer takes its place. */
	}
	return (ssize_t)take;
}

static int32_t post(const char *path, nghttp2_data_source_read_callback read, void *source, struct exchange *exchange)
{
	nghttp2_nv headers[] = { header(":method", "POST"), header(":scheme", "http"), header(":authority", "host"),
				 header(":path", path) };
	nghttp2_data_provider provider = { .source.ptr = source, .read_callback = read };
	exchange->id = nghttp2_submit_request(session, NULL, headers, 4, &provider, exchange);
	return exchange->id;
}

static void take_queries(void)
{
	while (resolver_ready && queries < MAX_QUERIES) {
		struct query *query = malloc(sizeof *query);
		if (!query)
			return;
		memset(query, 0, offsetof(struct query, message));
		socklen_t length = sizeof query->from;
		ssize_t got = recvfrom(options->resolver_fd, query->message, sizeof query->message,
				       MSG_DONTWAIT | MSG_TRUNC, (struct sockaddr *)&query->from, &length);
		if (got < 0 && errno == EAGAIN)
			resolver_ready = false;
		query->exchange.kind = KIND_QUERY;
		query->length = (size_t)got;
		if (got <= 0 || (size_t)got > sizeof query->message ||
		    post(CT_EGRESS_PATH_DNS, read_query, query, &query->exchange) < 0)
			free(query);
		else
			queries++;
	}
}

static void take_answer(struct query *query, const uint8_t *data, size_t length)
{
	/* An answer before the question has been sent would overwrite it. */
	if (query->sent == 0 || query->length + length > sizeof query->message) {
		query->oversized = true;
		return;
	}
	memcpy(query->message + query->length, data, length);
	query->length += length;
}

static void end_query(struct query *query)
{
	if (query->exchange.succeeded && query->exchange.ended && !query->oversized && query->length > 0)
		sendto(options->resolver_fd, query->message, query->length, MSG_DONTWAIT | MSG_NOSIGNAL,
		       (struct sockaddr *)&query->from, sizeof query->from);
	free(query);
	queries--;
}

static ssize_t read_report(nghttp2_session *unused, int32_t id, uint8_t *buffer, size_t length, uint32_t *flags,
			   nghttp2_data_source *source, void *context)
{
	(void)unused;
	(void)id;
	(void)source;
	(void)context;
	size_t take = report_length - report_sent;
	if (take > length)
		take = length;
	memcpy(buffer, report_records + report_sent, take);
	report_sent += take;
	if (report_sent == report_length)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)take;
}

/* One report at a time; meanwhile the ring keeps what happens, and what it has no room for is counted. */
static void report_attempts(void)
{
	uint64_t now = now_us();
	if (options->attempts_fd < 0 || report_exchange.id)
		return;
	if (!attempts_ready && (suppressed_check_us == 0 || now < suppressed_check_us))
		return;
	attempts_ready = false;
	suppressed_check_us = 0;
	report_length = options->take_attempts(report_records, REPORT_BYTES);
	uint64_t suppressed = options->suppressed();
	if (suppressed != suppressed_told) {
		uint64_t more = suppressed - suppressed_told;
		uint8_t *record = report_records + report_length;
		memset(record, 0, CT_ATTEMPT_BYTES);
		record[0] = CT_ATTEMPT_SUPPRESSED;
		put_u32(record + CT_ATTEMPT_BYTES - 4, more < UINT32_MAX ? (uint32_t)more : UINT32_MAX);
		report_length += CT_ATTEMPT_BYTES;
		suppressed_told = suppressed;
	}
	if (report_length == 0)
		return;
	suppressed_check_us = now + SUPPRESSED_CHECK_US;
	report_sent = 0;
	if (post(CT_EGRESS_PATH_EVENTS, read_report, NULL, &report_exchange) < 0) {
		/* Attempts that nobody hears of: rather no network at all. */
		report("cannot report what was tried");
		port_finish(&port, PORT_PROTOCOL_ERROR);
	}
}

/* --- HTTP/2 --- */

static int on_header(nghttp2_session *unused, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
		     const uint8_t *value, size_t value_length, uint8_t flags, void *context)
{
	(void)unused;
	(void)flags;
	(void)context;
	struct exchange *exchange = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	if (exchange && name_length == 7 && memcmp(name, ":status", 7) == 0)
		exchange->succeeded = value_length == 3 && value[0] == '2';
	return 0;
}

static int on_frame(nghttp2_session *unused, const nghttp2_frame *frame, void *context)
{
	(void)unused;
	(void)context;
	if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
		return 0;
	struct exchange *exchange = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	if (!exchange)
		return 0;
	exchange->ended = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
	if (exchange->kind != KIND_CONNECTION)
		return 0;
	struct connection *connection = (struct connection *)exchange;
	if (!exchange->succeeded) {
		/* The host will not have it. To the job that is a connection that breaks at once. */
		fail_connection(connection, NGHTTP2_CANCEL);
		return 0;
	}
	if (frame->hd.type == NGHTTP2_HEADERS)
		resume(connection);
	if (exchange->ended) {
		pass_gathered();
		if (connection->fd >= 0 && !has_rest(connection))
			end_to_job(connection);
	}
	return 0;
}

static int on_data_chunk(nghttp2_session *unused, uint8_t flags, int32_t id, const uint8_t *data, size_t length,
			 void *context)
{
	(void)unused;
	(void)flags;
	(void)context;
	struct exchange *exchange = nghttp2_session_get_stream_user_data(session, id);
	nghttp2_session_consume_connection(session, length);
	if (exchange && exchange->kind == KIND_CONNECTION) {
		gather((struct connection *)exchange, data, length);
		return 0;
	}
	if (exchange && exchange->kind == KIND_QUERY)
		take_answer((struct query *)exchange, data, length);
	nghttp2_session_consume_stream(session, id, length);
	return 0;
}

static int on_stream_close(nghttp2_session *unused, int32_t id, uint32_t error, void *context)
{
	(void)unused;
	(void)context;
	pass_gathered();
	struct exchange *exchange = nghttp2_session_get_stream_user_data(session, id);
	if (!exchange)
		return 0;
	nghttp2_session_set_stream_user_data(session, id, NULL);
	exchange->id = 0;
	if (exchange->kind == KIND_QUERY) {
		end_query((struct query *)exchange);
		return 0;
	}
	if (exchange->kind != KIND_CONNECTION)
		return 0;
	struct connection *connection = (struct connection *)exchange;
	/* Cut short must not look like an end. */
	if (error != NGHTTP2_NO_ERROR || !exchange->ended)
		close_connection(connection, true);
	else if (!has_rest(connection))
		close_connection(connection, false);
	return 0;
}

static nghttp2_session *start_http2(void)
{
	const struct port_events events = {
		.header = on_header,
		.frame = on_frame,
		.data = on_data_chunk,
		.closed = on_stream_close,
	};
	const nghttp2_settings_entry settings[] = {
		{ NGHTTP2_SETTINGS_ENABLE_PUSH, 0 },
		{ NGHTTP2_SETTINGS_MAX_FRAME_SIZE, 65536 },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, 4096 },
	};
	session = port_session(PORT_CLIENT, &events, settings, sizeof settings / sizeof settings[0], SESSION_WINDOW_BYTES);
	return session;
}

/* --- The loop --- */

static void watch(int fd, uint32_t events, enum kind *kind)
{
	struct epoll_event event = { .events = events | EPOLLET, .data.ptr = kind };
	if (fd >= 0 && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
		fatal("cannot set up the event loop: %s", strerror(errno));
}

static void bury_closed(void)
{
	while (closed_connections) {
		struct connection *next = closed_connections->next_closed;
		free(closed_connections);
		closed_connections = next;
	}
}

static int loop_timeout_ms(bool more_input)
{
	if (more_input)
		return 0;
	int timeout = port_timeout_ms(&port);
	if (timeout < 0 && suppressed_check_us != 0 && !report_exchange.id) {
		uint64_t now = now_us();
		timeout = now < suppressed_check_us ? (int)((suppressed_check_us - now) / 1000) + 1 : 0;
	}
	return timeout;
}

enum port_end egress_serve(const struct egress_options *egress_options)
{
	static enum kind port_kind = KIND_PORT, listener_kinds[2] = { KIND_LISTENER, KIND_LISTENER },
			 resolver_kind = KIND_RESOLVER, attempts_kind = KIND_ATTEMPTS;
	bool more_input = false;
	options = egress_options;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		fatal("cannot set up the event loop: %s", strerror(errno));
	watch(options->port_fd, PORT_EVENTS, &port_kind);
	for (size_t which = 0; which < 2; which++)
		watch(options->listener_fds[which], EPOLLIN, &listener_kinds[which]);
	watch(options->resolver_fd, EPOLLIN, &resolver_kind);
	watch(options->attempts_fd, EPOLLIN, &attempts_kind);
	port_init(&port, options->port_fd, inbox, sizeof inbox, start_http2);

	while (port.phase != PORT_OVER) {
		if (port.phase == PORT_OPEN) {
			accept_connections(0);
			accept_connections(1);
			take_queries();
			report_attempts();
		}
		port_write(&port);
		bury_closed();

		struct epoll_event events[64];
		int count = epoll_wait(epoll_fd, events, 64, loop_timeout_ms(more_input));
		bool port_ready = more_input || (count == 0 && !port.host_seen);
		if (count == 0)
			port_retry(&port);
		for (int index = 0; index < count; index++) {
			enum kind *kind = events[index].data.ptr;
			switch (*kind) {
			case KIND_PORT:
				port_ready = true;
				if (events[index].events & EPOLLOUT)
					port.full = false;
				break;
			case KIND_LISTENER:
				listener_ready[kind - listener_kinds] = true;
				break;
			case KIND_RESOLVER:
				resolver_ready = true;
				break;
			case KIND_ATTEMPTS:
				attempts_ready = true;
				break;
			default:
				connection_ready((struct connection *)kind, events[index].events);
			}
		}
		if (port_ready)
			more_input = port_read(&port);
		pass_gathered();
	}
	return port.end;
}
