/*
 * The session with the host: see link.h. One thread, one epoll.
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
#include <sys/wait.h>
#include <unistd.h>

#include "code.h"
#include "console.h"
#include "exec.h"
#include "files.h"
#include "identity.h"
#include "port.h"
#include "protocol.h"
#include "records.h"
#include "stats.h"

/* Of one turn of the loop: processes' output must not wait long. */
#define INBOX_BYTES (128 * 1024)

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

/* How long the job's processes may take to die: at the end of the VM, and between two phases, when they have to. */
#define SHUTDOWN_LIMIT_US 2000000
#define PHASE_LIMIT_US 10000000

/* How long the answer to a shutdown may take to leave the port. */
#define LAST_WORDS_MS 500

/* A line for each of 256 CPUs. */
#define AUDIT_TEXT_BYTES 8192

enum request {
	REQUEST_UNKNOWN,
	REQUEST_IDENTITY,
	REQUEST_CODE,
	REQUEST_PHASE,
	REQUEST_EXEC,
	REQUEST_STATS,
	REQUEST_AUDIT,
	REQUEST_SHUTDOWN,
};

struct stream {
	int32_t id;
	enum request request;
	char method[8];
	char path[24];
	struct record_decoder records;
	struct exec *exec;
	struct identity_request *identity;
	struct code_request *code;
	uint8_t phase; /* The first byte of the body, and how many there were. */
	size_t phase_bytes;
	bool responded;
	bool finished; /* Nothing will be added to the output. */
	bool deferred; /* nghttp2 waits for nghttp2_session_resume_data. */
	bool starved;  /* stream_reserve had to say no. */
	uint8_t *output;
	size_t output_start;
	size_t output_end;
};

static const struct link_options *options;
static int epoll_fd = -1;
static struct port port;
static uint8_t inbox[INBOX_BYTES];
static nghttp2_session *session;
static bool identified;
/* Code is judged. */
static bool coded;
/* The answer to this stream is the last thing the guest says. */
static int32_t last_stream;
static bool last_stream_closed;
static bool room_freed;

int loop_add(struct source *source, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events | EPOLLET, .data.ptr = source };
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

void loop_remove(int fd)
{
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
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
		{ "PUT", CT_GUEST_PATH_CODE, REQUEST_CODE },
		{ "PUT", CT_GUEST_PATH_PHASE, REQUEST_PHASE },
		{ "POST", CT_GUEST_PATH_EXEC, REQUEST_EXEC },
		{ "GET", CT_GUEST_PATH_STATS, REQUEST_STATS },
		{ "GET", CT_GUEST_PATH_AUDIT, REQUEST_AUDIT },
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
	if (request == REQUEST_AUDIT && !options->audit_position)
		request = REQUEST_UNKNOWN;
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
		if (request == REQUEST_CODE && coded) {
			reject(stream, "409", "which code may run has been said already");
			return;
		}
		if (request == REQUEST_PHASE && !coded) {
			reject(stream, "409", "without a word about code there are no phases");
			return;
		}
		if (request == REQUEST_CODE)
			stream->code = code_request_new();
		if (request == REQUEST_EXEC)
			stream->exec = exec_new(stream);
	}
	if ((request == REQUEST_IDENTITY && !stream->identity) || (request == REQUEST_CODE && !stream->code) ||
	    (request == REQUEST_EXEC && !stream->exec)) {
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
	if (input->stream->request == REQUEST_CODE)
		return code_record(input->stream->code, type, payload, length, &input->reason);
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
	if (stream && stream->request == REQUEST_PHASE && length > 0) {
		stream->phase = data[0];
		stream->phase_bytes += length;
	}
	if (stream &&
	    (stream->request == REQUEST_IDENTITY || stream->request == REQUEST_CODE || stream->request == REQUEST_EXEC) &&
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

/* Returns whether everything the job runs is gone, which it may take so long. */
static bool stop_job(uint64_t limit_us)
{
	uint64_t deadline = now_us() + limit_us;
	exec_kill_all();
	if (options->cgroup_fd < 0)
		return false;
	for (;;) {
		char text[64];
		exec_reap();
		if (file_read_at(options->cgroup_fd, "cgroup.events", text, sizeof text) < 0)
			return false;
		if (strstr(text, "populated 0"))
			return true;
		if (now_us() >= deadline)
			return false;
		usleep(1000);
	}
}

static void apply_code(struct stream *stream)
{
	char text[512];
	if (stream->records.broken)
		return;
	if (coded) {
		/* Another request was faster. */
		reject(stream, "409", "which code may run has been said already");
		return;
	}
	if (record_decoder_pending(&stream->records) || !code_complete(stream->code)) {
		reject(stream, "400", "incomplete word about code");
		return;
	}
	/* What has run so far was the host's, to warm the VM up. It is gone, and what it wrote has no label. */
	if (!stop_job(PHASE_LIMIT_US)) {
		reject(stream, "500", "there are processes that do not end");
		return;
	}
	coded = code_apply(stream->code, options->cgroup_fd, text, sizeof text) == 0;
	respond_text(stream, coded ? "200" : "500", text);
}

static void apply_phase(struct stream *stream)
{
	if (stream->phase_bytes != 1 || stream->phase < CT_PHASE_STAGE || stream->phase > CT_PHASE_BUILD) {
		reject(stream, "400", "not a phase");
		return;
	}
	/* What a process holds open for writing must not get into the next phase. */
	if (!stop_job(PHASE_LIMIT_US)) {
		reject(stream, "500", "there are processes of the job that do not end");
		return;
	}
	code_set_phase(stream->phase);
	respond_text(stream, "200", "");
}

static void end_request(struct stream *stream)
{
	static char text[AUDIT_TEXT_BYTES];
	switch (stream->request) {
	case REQUEST_IDENTITY:
		apply_identity(stream);
		return;
	case REQUEST_CODE:
		apply_code(stream);
		return;
	case REQUEST_PHASE:
		apply_phase(stream);
		return;
	case REQUEST_EXEC:
		if (!stream->records.broken && exec_input_end(stream->exec) < 0)
			reject(stream, "400", "the request ended before a start record");
		return;
	case REQUEST_STATS:
		stats_text(options->cgroup_fd, text, sizeof text);
		respond_text(stream, "200", text);
		return;
	case REQUEST_AUDIT:
		options->audit_position(text, sizeof text);
		respond_text(stream, "200", text);
		return;
	case REQUEST_SHUTDOWN:
		last_stream = stream->id;
		stop_job(SHUTDOWN_LIMIT_US);
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
	code_request_free(stream->code);
	record_decoder_free(&stream->records);
	free(stream->output);
	free(stream);
	return 0;
}

static nghttp2_session *start_http2(void)
{
	const struct port_events events = {
		.begin_headers = on_begin_headers,
		.header = on_header,
		.frame = on_frame,
		.data = on_data_chunk,
		.closed = on_stream_close,
	};
	const nghttp2_settings_entry settings[] = {
		{ NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, MAX_STREAMS },
		{ NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES },
		{ NGHTTP2_SETTINGS_MAX_FRAME_SIZE, 65536 },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, 4096 },
	};
	session = port_session(PORT_SERVER, &events, settings, sizeof settings / sizeof settings[0], SESSION_WINDOW_BYTES);
	return session;
}

static void helper_ended(const char *name, int pidfd)
{
	siginfo_t end = { 0 };
	waitid(P_PIDFD, (id_t)pidfd, &end, WEXITED | WNOHANG);
	report("the %s helper has ended: %s %d", name, end.si_code == CLD_EXITED ? "exit status" : "signal", end.si_status);
	port_finish(&port, PORT_HUNG_UP);
}

static void egress_ended(struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	/* Without it the job would have no network and nobody would watch what it tries. */
	helper_ended("egress", options->egress_pidfd);
}

static void audit_ended(struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	/* Without it nobody would hear what the job does. */
	helper_ended("audit", options->audit_pidfd);
}

enum port_end link_serve(const struct link_options *link_options)
{
	struct source port_source = { 0 }, signal_source = { 0 }, egress_source = { .ready = egress_ended },
		      audit_source = { .ready = audit_ended };
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
	    loop_add(&port_source, options->control_fd, PORT_EVENTS) < 0 ||
	    (options->egress_pidfd >= 0 && loop_add(&egress_source, options->egress_pidfd, EPOLLIN) < 0) ||
	    (options->audit_pidfd >= 0 && loop_add(&audit_source, options->audit_pidfd, EPOLLIN) < 0))
		fatal("cannot set up the event loop: %s", strerror(errno));
	exec_init(options);

	port_init(&port, options->control_fd, inbox, sizeof inbox, start_http2);
	port_say(&port, CT_READY_LINE, sizeof CT_READY_LINE - 1);
	bool more_input = false, more_output = false;
	uint64_t last_words = 0;
	while (port.phase != PORT_OVER) {
		port_write(&port);
		if (last_stream && port.phase == PORT_OPEN) {
			uint64_t now = now_us();
			if (last_words == 0)
				last_words = now + LAST_WORDS_MS * 1000;
			if (now >= last_words || (last_stream_closed && port_drained(&port))) {
				port_finish(&port, PORT_DONE);
				break;
			}
		}
		int timeout = port_timeout_ms(&port);
		if (more_input || more_output || room_freed)
			timeout = 0;
		else if (timeout < 0 && last_stream)
			timeout = 20;
		room_freed = false;
		if (timeout != 0)
			exec_idle();

		struct epoll_event events[32];
		int count = epoll_wait(epoll_fd, events, 32, timeout);
		bool child_ended = false;
		bool port_ready = more_input || (count == 0 && !port.host_seen);
		if (count == 0)
			port_retry(&port);
		/*
		 * Pipes first, then ended processes, then the host: each of these may free what the ones before it refer to,
		 * and none what comes after it.
		 */
		for (int index = 0; index < count; index++) {
			struct source *source = events[index].data.ptr;
			if (source == &port_source) {
				port_ready = true;
				if (events[index].events & EPOLLOUT)
					port.full = false;
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
			more_input = port_read(&port);
		more_output = exec_run();
	}
	return port.end;
}
