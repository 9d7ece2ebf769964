/*
 * The session with the host: see link.h. One thread, one epoll. The port is watched edge-triggered: a virtio port
 * without a host reports a hang-up all the time, which would make a level-triggered loop spin.
 */
#include "link.h"

#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "console.h"
#include "exec.h"
#include "files.h"
#include "hello.h"
#include "identity.h"
#include "protocol.h"
#include "records.h"
#include "stats.h"

/* virtio_console hands out at most one 4 KiB buffer per read and takes at most 32 KiB per write. */
#define PORT_READ_BYTES 4096
#define PORT_WRITE_BYTES 32768
/* Reads per turn of the loop: a host that sends without end must not keep processes' output waiting. */
#define PORT_READ_BUDGET 32
/* A DATA frame that fills one write together with its header. */
#define FRAME_BYTES (PORT_WRITE_BYTES - 9)

#define STREAM_WINDOW_BYTES (1024 * 1024)
/* Connection credit is given back on arrival, so one stalled stream cannot starve the others. */
#define SESSION_WINDOW_BYTES (16 * 1024 * 1024)
/* With the windows and OUTPUT_BYTES this bounds the agent's memory; boot.c reserves some for it. */
#define MAX_STREAMS 64

/* Per stream: what processes wrote and the host has not read. */
#define OUTPUT_BYTES (256 * 1024)
/* Kept free for the short records of stream_record. */
#define OUTPUT_MARGIN 2048
/* Room that makes it worth waking a reader. */
#define OUTPUT_LOW (OUTPUT_BYTES / 2)

/* Before the session only: a second look at the port in case its wake-up was lost in a snapshot. */
#define IDLE_RETRY_MS 2000
/* The same between the hello and the first sign that the port is open. */
#define HELLO_RETRY_MS 20
/* How long the answer to a shutdown may take to leave the port. */
#define LAST_WORDS_MS 500

enum request { REQUEST_UNKNOWN, REQUEST_IDENTITY, REQUEST_EXEC, REQUEST_STATS, REQUEST_SHUTDOWN };

struct stream {
	int32_t id;
	enum request request;
	char method[8];
	char path[24];
	struct record_decoder records;
	struct exec *exec;
	struct identity_request *identity;
	bool responded;
	bool finished; /* Nothing will be added to the output. */
	bool deferred; /* nghttp2 waits for nghttp2_session_resume_data. */
	bool starved;  /* stream_reserve had to say no. */
	uint8_t *output;
	size_t output_start;
	size_t output_end;
};

enum phase { PHASE_HELLO, PHASE_HTTP2, PHASE_OVER };

static const struct link_options *options;
static int epoll_fd = -1;
static enum phase phase;
static enum link_end end_reason;
static nghttp2_session *session;
static bool identified;
/* The answer to this stream is the last thing the guest says. */
static int32_t last_stream;
static bool last_stream_closed;
static bool room_freed;

static struct hello hello;

/* Bytes for the port, and the rest of the last thing nghttp2 wants sent. */
static uint8_t outbox[PORT_WRITE_BYTES];
static size_t outbox_start;
static size_t outbox_end;
static const uint8_t *frame_rest;
static size_t frame_rest_bytes;
static bool port_full;
/*
 * Whether the port has shown since the hello that a host is there. After a restore the host's first bytes can come
 * before the kernel has learnt that a host has opened the port; reading then gives 0, as after a hang-up.
 */
static bool host_seen;

int loop_add(struct source *source, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events | EPOLLET, .data.ptr = source };
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

void loop_remove(int fd)
{
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static void end_session(enum link_end reason)
{
	if (phase != PHASE_OVER)
		end_reason = reason;
	phase = PHASE_OVER;
}

/* --- Responses --- */

static ssize_t read_output(nghttp2_session *unused, int32_t id, uint8_t *buffer, size_t length, uint32_t *flags,
			   nghttp2_data_source *source, void *context)
{
	(void)unused;
	(void)id;
	(void)context;
	struct stream *stream = source->ptr;
	size_t have = stream->output_end - stream->output_start;
	size_t take = have < length ? have : length;
	if (take == 0 && !stream->finished) {
		stream->deferred = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	memcpy(buffer, stream->output + stream->output_start, take);
	stream->output_start += take;
	if (stream->output_start == stream->output_end) {
		stream->output_start = stream->output_end = 0;
		if (stream->finished)
			*flags |= NGHTTP2_DATA_FLAG_EOF;
	}
	if (stream->starved && stream->output_end - stream->output_start <= OUTPUT_LOW) {
		stream->starved = false;
		room_freed = true;
	}
	return (ssize_t)take;
}

static ssize_t frame_length(nghttp2_session *unused, uint8_t type, int32_t id, int32_t session_window,
			    int32_t stream_window, uint32_t max_frame, void *context)
{
	(void)unused;
	(void)type;
	(void)id;
	(void)context;
	ssize_t length = FRAME_BYTES;
	if (length > session_window)
		length = session_window;
	if (length > stream_window)
		length = stream_window;
	if (length > (ssize_t)max_frame)
		length = (ssize_t)max_frame;
	return length;
}

static void respond(struct stream *stream, const char *status, const char *type)
{
	nghttp2_nv headers[] = {
		{ (uint8_t *)":status", (uint8_t *)status, 7, strlen(status), 0 },
		{ (uint8_t *)"content-type", (uint8_t *)type, 12, strlen(type), 0 },
	};
	nghttp2_data_provider provider = { .source.ptr = stream, .read_callback = read_output };
	stream->responded = true;
	if (nghttp2_submit_response(session, stream->id, headers, 2, &provider) != 0)
		nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream->id, NGHTTP2_INTERNAL_ERROR);
}

static void wake_output(struct stream *stream)
{
	if (!stream->deferred)
		return;
	stream->deferred = false;
	nghttp2_session_resume_data(session, stream->id);
}

void stream_respond(struct stream *stream)
{
	respond(stream, "200", "application/octet-stream");
}

void stream_finish(struct stream *stream)
{
	stream->finished = true;
	wake_output(stream);
}

/* Makes `need` bytes free behind the data, moving it to the front if that is what it takes. */
static bool make_room(struct stream *stream, size_t need)
{
	if (!stream->output) {
		/* Only touched as far as it is used: it costs address space, not memory. */
		stream->output = malloc(OUTPUT_BYTES);
		if (!stream->output)
			return false;
	}
	if (OUTPUT_BYTES - stream->output_end >= need)
		return true;
	if (OUTPUT_BYTES - (stream->output_end - stream->output_start) < need)
		return false;
	memmove(stream->output, stream->output + stream->output_start, stream->output_end - stream->output_start);
	stream->output_end -= stream->output_start;
	stream->output_start = 0;
	return true;
}

uint8_t *stream_reserve(struct stream *stream, size_t *room)
{
	/* Moving data for a few bytes more would cost more than it gives. */
	if (stream->starved || !make_room(stream, OUTPUT_MARGIN + 4096)) {
		stream->starved = true;
		return NULL;
	}
	size_t free_bytes = OUTPUT_BYTES - OUTPUT_MARGIN - CT_RECORD_HEADER_BYTES - stream->output_end;
	*room = free_bytes < CT_MAX_RECORD_BYTES ? free_bytes : CT_MAX_RECORD_BYTES;
	return stream->output + stream->output_end + CT_RECORD_HEADER_BYTES;
}

void stream_commit(struct stream *stream, uint8_t type, size_t length)
{
	uint8_t *header = stream->output + stream->output_end;
	header[0] = type;
	put_u32(header + 1, (uint32_t)length);
	stream->output_end += CT_RECORD_HEADER_BYTES + length;
	wake_output(stream);
}

static void append(struct stream *stream, const void *data, size_t length)
{
	if (!make_room(stream, length))
		return;
	memcpy(stream->output + stream->output_end, data, length);
	stream->output_end += length;
}

void stream_record(struct stream *stream, uint8_t type, const void *payload, size_t length)
{
	uint8_t header[CT_RECORD_HEADER_BYTES] = { type };
	put_u32(header + 1, (uint32_t)length);
	append(stream, header, sizeof header);
	append(stream, payload, length);
	wake_output(stream);
}

void stream_consume(struct stream *stream, size_t length)
{
	nghttp2_session_consume_stream(session, stream->id, length);
}

static void respond_text(struct stream *stream, const char *status, const char *text)
{
	append(stream, text, strlen(text));
	stream->finished = true;
	respond(stream, status, "text/plain");
}

/* A request that went wrong: a text if the response has not begun, a reset otherwise. */
static void reject(struct stream *stream, const char *status, const char *reason)
{
	char text[300];
	if (stream->responded) {
		if (!stream->finished)
			nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream->id, NGHTTP2_PROTOCOL_ERROR);
		return;
	}
	snprintf(text, sizeof text, "%s\n", reason);
	respond_text(stream, status, text);
}

/* --- Requests --- */

static enum request classify(const struct stream *stream)
{
	static const struct {
		const char *method;
		const char *path;
		enum request request;
	} known[] = {
		{ "PUT", CT_GUEST_PATH_IDENTITY, REQUEST_IDENTITY },
		{ "POST", CT_GUEST_PATH_EXEC, REQUEST_EXEC },
		{ "GET", CT_GUEST_PATH_STATS, REQUEST_STATS },
		{ "POST", CT_GUEST_PATH_SHUTDOWN, REQUEST_SHUTDOWN },
	};
	for (size_t index = 0; index < sizeof known / sizeof known[0]; index++)
		if (strcmp(stream->method, known[index].method) == 0 && strcmp(stream->path, known[index].path) == 0)
			return known[index].request;
	return REQUEST_UNKNOWN;
}

static void begin_request(struct stream *stream)
{
	enum request request = classify(stream);
	if (last_stream) {
		reject(stream, "409", "the guest is shutting down");
		return;
	}
	switch (request) {
	case REQUEST_UNKNOWN:
		reject(stream, "404", "no such request");
		return;
	case REQUEST_IDENTITY:
		if (identified) {
			reject(stream, "409", "this guest has its identity already");
			return;
		}
		stream->identity = calloc(1, sizeof *stream->identity);
		break;
	default:
		if (!identified) {
			reject(stream, "409", "this guest has no identity yet");
			return;
		}
		if (request == REQUEST_EXEC)
			stream->exec = exec_new(stream);
	}
	if ((request == REQUEST_IDENTITY && !stream->identity) || (request == REQUEST_EXEC && !stream->exec)) {
		reject(stream, "500", "no memory");
		return;
	}
	stream->request = request;
	record_decoder_init(&stream->records, request == REQUEST_EXEC ? exec_streams : NULL);
}

struct input {
	struct stream *stream;
	size_t held;
	const char *reason;
};

static int on_record(void *context, uint8_t type, const uint8_t *payload, size_t length, bool first)
{
	struct input *input = context;
	if (input->stream->request == REQUEST_IDENTITY) {
		input->reason = "malformed identity record";
		return identity_record(input->stream->identity, type, payload, length);
	}
	int held = exec_input(input->stream->exec, type, payload, length, first, &input->reason);
	if (held > 0)
		input->held += (size_t)held;
	return held < 0 ? -1 : 0;
}

static int on_data_chunk(nghttp2_session *unused, uint8_t flags, int32_t id, const uint8_t *data, size_t length,
			 void *context)
{
	(void)unused;
	(void)flags;
	(void)context;
	struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
	struct input input = { .stream = stream, .reason = "malformed record" };
	nghttp2_session_consume_connection(session, length);
	if (stream && (stream->request == REQUEST_IDENTITY || stream->request == REQUEST_EXEC) &&
	    !stream->records.broken) {
		if (record_decoder_push(&stream->records, data, length, on_record, &input) < 0)
			reject(stream, "400", input.reason);
	}
	nghttp2_session_consume_stream(session, id, length - input.held);
	return 0;
}

static void apply_identity(struct stream *stream)
{
	char text[512];
	if (identified) {
		/* Another request was faster. */
		reject(stream, "409", "this guest has its identity already");
		return;
	}
	if (stream->records.broken)
		return;
	if (record_decoder_pending(&stream->records) || !identity_complete(stream->identity)) {
		reject(stream, "400", "incomplete identity");
		return;
	}
	identified = true;
	if (identity_apply(stream->identity, &options->user, text, sizeof text) < 0) {
		/* Half an identity is none: no other request will be answered. */
		last_stream = stream->id;
		respond_text(stream, "500", text);
		return;
	}
	respond_text(stream, "200", text);
}

/* Everything the job runs is gone when this returns, or two seconds have passed. */
static void stop_job(void)
{
	uint64_t deadline = now_us() + 2000000;
	exec_kill_all();
	while (options->cgroup_fd >= 0 && now_us() < deadline) {
		char text[64];
		exec_reap();
		if (file_read_at(options->cgroup_fd, "cgroup.events", text, sizeof text) < 0 || strstr(text, "populated 0"))
			return;
		usleep(1000);
	}
}

static void end_request(struct stream *stream)
{
	char text[1024];
	switch (stream->request) {
	case REQUEST_IDENTITY:
		apply_identity(stream);
		return;
	case REQUEST_EXEC:
		if (!stream->records.broken && exec_input_end(stream->exec) < 0)
			reject(stream, "400", "the request ended before a start record");
		return;
	case REQUEST_STATS:
		stats_text(options->cgroup_fd, text, sizeof text);
		respond_text(stream, "200", text);
		return;
	case REQUEST_SHUTDOWN:
		last_stream = stream->id;
		stop_job();
		volume_close();
		respond_text(stream, "200", "");
		return;
	default:
		return;
	}
}

static int on_begin_headers(nghttp2_session *unused, const nghttp2_frame *frame, void *context)
{
	(void)unused;
	(void)context;
	if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	struct stream *stream = calloc(1, sizeof *stream);
	if (!stream)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	stream->id = frame->hd.stream_id;
	nghttp2_session_set_stream_user_data(session, stream->id, stream);
	return 0;
}

static int on_header(nghttp2_session *unused, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
		     const uint8_t *value, size_t value_length, uint8_t flags, void *context)
{
	(void)unused;
	(void)flags;
	(void)context;
	struct stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	if (!stream || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	/* Anything too long for its field is no known request and stays empty. */
	if (name_length == 7 && memcmp(name, ":method", 7) == 0 && value_length < sizeof stream->method)
		memcpy(stream->method, value, value_length);
	else if (name_length == 5 && memcmp(name, ":path", 5) == 0 && value_length < sizeof stream->path)
		memcpy(stream->path, value, value_length);
	return 0;
}

static int on_frame(nghttp2_session *unused, const nghttp2_frame *frame, void *context)
{
	(void)unused;
	(void)context;
	if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
		return 0;
	struct stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	if (!stream)
		return 0;
	if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
		begin_request(stream);
	if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
		end_request(stream);
	return 0;
}

static int on_stream_close(nghttp2_session *unused, int32_t id, uint32_t error, void *context)
{
	(void)unused;
	(void)error;
	(void)context;
	struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
	if (!stream)
		return 0;
	nghttp2_session_set_stream_user_data(session, id, NULL);
	if (id == last_stream)
		last_stream_closed = true;
	if (stream->exec)
		exec_detach(stream->exec);
	if (stream->identity) {
		explicit_bzero(stream->identity, sizeof *stream->identity);
		free(stream->identity);
	}
	record_decoder_free(&stream->records);
	free(stream->output);
	free(stream);
	return 0;
}

static void start_http2(void)
{
	nghttp2_session_callbacks *callbacks;
	nghttp2_option *option;
	if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0)
		fatal("no memory for the session");
	nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
	nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, frame_length);
	/* Credit follows what processes really took. */
	nghttp2_option_set_no_auto_window_update(option, 1);
	/* Closed streams need not be remembered: priorities mean nothing here. */
	nghttp2_option_set_no_closed_streams(option, 1);
	if (nghttp2_session_server_new2(&session, callbacks, NULL, option) != 0)
		fatal("no memory for the session");
	nghttp2_option_del(option);
	nghttp2_session_callbacks_del(callbacks);

	nghttp2_settings_entry settings[] = {
		{ NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, MAX_STREAMS },
		{ NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES },
		{ NGHTTP2_SETTINGS_MAX_FRAME_SIZE, 65536 },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, 4096 },
		{ NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 0 },
	};
	if (nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, 4) != 0 ||
	    nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, SESSION_WINDOW_BYTES) != 0)
		fatal("cannot start the session");
	phase = PHASE_HTTP2;
}

/* --- The port --- */

static void take_input(const uint8_t *data, size_t length)
{
	if (phase == PHASE_HELLO) {
		size_t taken = hello_scan(&hello, data, length);
		if (!hello_complete(&hello))
			return;
		/* What is left of the ready line would only confuse; nothing else can be waiting yet. */
		memcpy(outbox, hello.bytes, sizeof hello.bytes);
		outbox_start = 0;
		outbox_end = sizeof hello.bytes;
		port_full = false;
		start_http2();
		data += taken;
		length -= taken;
	}
	if (phase != PHASE_HTTP2 || length == 0)
		return;
	ssize_t result = nghttp2_session_mem_recv(session, data, length);
	if (result < 0) {
		report("the host broke the protocol: %s", nghttp2_strerror((int)result));
		end_session(LINK_PROTOCOL_ERROR);
	}
}

/* Returns whether the budget ended before the input did. */
static bool read_port(void)
{
	uint8_t data[PORT_READ_BYTES];
	for (int turn = 0; turn < PORT_READ_BUDGET && phase != PHASE_OVER; turn++) {
		ssize_t got = read(options->control_fd, data, sizeof data);
		if (got > 0) {
			take_input(data, (size_t)got);
			continue;
		}
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			host_seen = phase == PHASE_HTTP2;
		else if (phase == PHASE_HTTP2 && host_seen)
			end_session(LINK_HUNG_UP);
		/* Otherwise a virtio port without a host, which reads 0 bytes: that is how a pooled guest waits. */
		return false;
	}
	return true;
}

static void fill_outbox(void)
{
	outbox_start = outbox_end = 0;
	while (outbox_end < sizeof outbox) {
		if (frame_rest_bytes == 0) {
			ssize_t length = nghttp2_session_mem_send(session, &frame_rest);
			if (length < 0) {
				end_session(LINK_PROTOCOL_ERROR);
				return;
			}
			if (length == 0)
				return;
			frame_rest_bytes = (size_t)length;
		}
		size_t take = sizeof outbox - outbox_end;
		if (take > frame_rest_bytes)
			take = frame_rest_bytes;
		memcpy(outbox + outbox_end, frame_rest, take);
		outbox_end += take;
		frame_rest += take;
		frame_rest_bytes -= take;
	}
}

/* Writes until the port is full or nothing is left. */
static void write_port(void)
{
	while (phase != PHASE_OVER && !port_full) {
		if (outbox_start == outbox_end) {
			if (phase != PHASE_HTTP2)
				return;
			fill_outbox();
			if (outbox_start == outbox_end)
				return;
		}
		ssize_t written = write(options->control_fd, outbox + outbox_start, outbox_end - outbox_start);
		if (written > 0) {
			host_seen = phase == PHASE_HTTP2;
			outbox_start += (size_t)written;
			continue;
		}
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0 && (errno == EAGAIN || !host_seen)) {
			port_full = true;
			return;
		}
		end_session(LINK_HUNG_UP);
	}
}

static bool nothing_to_send(void)
{
	return outbox_start == outbox_end && frame_rest_bytes == 0 && !nghttp2_session_want_write(session);
}

enum link_end link_serve(const struct link_options *link_options)
{
	struct source port_source = { 0 }, signal_source = { 0 };
	sigset_t signals;
	options = link_options;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	/* Blocked rather than ignored, so that processes start with every signal at its default (exec.c). */
	sigemptyset(&signals);
	sigaddset(&signals, SIGPIPE);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	sigdelset(&signals, SIGPIPE);
	int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (epoll_fd < 0 || signal_fd < 0 || loop_add(&signal_source, signal_fd, EPOLLIN) < 0 ||
	    loop_add(&port_source, options->control_fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP) < 0)
		fatal("cannot set up the event loop: %s", strerror(errno));
	exec_init(options);

	memcpy(outbox, CT_READY_LINE, sizeof CT_READY_LINE - 1);
	outbox_end = sizeof CT_READY_LINE - 1;
	bool more_input = false, more_output = false;
	uint64_t last_words = 0;
	while (phase != PHASE_OVER) {
		write_port();
		if (last_stream && phase == PHASE_HTTP2) {
			uint64_t now = now_us();
			if (last_words == 0)
				last_words = now + LAST_WORDS_MS * 1000;
			if (now >= last_words || (last_stream_closed && nothing_to_send() && !port_full)) {
				end_session(LINK_SHUT_DOWN);
				break;
			}
		}
		int timeout = -1;
		if (more_input || more_output || room_freed)
			timeout = 0;
		else if (!host_seen)
			timeout = phase == PHASE_HELLO ? IDLE_RETRY_MS : HELLO_RETRY_MS;
		else if (last_stream)
			timeout = 20;
		room_freed = false;
		if (timeout != 0)
			exec_idle();

		struct epoll_event events[32];
		int count = epoll_wait(epoll_fd, events, 32, timeout);
		bool child_ended = false;
		bool port_ready = more_input || (count == 0 && !host_seen);
		if (count == 0 && !host_seen)
			port_full = false;
		/*
		 * Pipes first, then ended processes, then the host: each of these may free what the ones before it refer to,
		 * and none what comes after it.
		 */
		for (int index = 0; index < count; index++) {
			struct source *source = events[index].data.ptr;
			if (source == &port_source) {
				port_ready = true;
				if (events[index].events & EPOLLOUT)
					port_full = false;
			} else if (source == &signal_source) {
				child_ended = true;
			} else {
				source->ready(source, events[index].events);
			}
		}
		if (child_ended) {
			struct signalfd_siginfo information[8];
			while (read(signal_fd, information, sizeof information) > 0)
				;
			exec_reap();
		}
		if (port_ready)
			more_input = read_port();
		more_output = exec_run();
	}
	return end_reason;
}
