/*
 * The audit helper: see audit.h. One buffer: a frame is made in it when the one before has been written, so that what the
 * host has not taken stays in the rings, where it can be seen that they fill up.
 */
#include "audit.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "console.h"

/* While a job works, what it does is sent in bunches of this age. */
#define ACTIVE_MS 25
/* After this long without anything, the next record has to wake the helper. */
#define ACTIVE_LOOKS 4
/*
 * The host waits for 2 s. Half of it is how long a record waits whose waking was missed, because the writer saw that the
 * helper was awake and the helper saw that nothing was there.
 */
#define HEARTBEAT_MS 400
#define IDLE_MS (HEARTBEAT_MS / 2)

#define BUSY_BIT (1U << 31)
#define DISCARD_BIT (1U << 30)
#define QUEUE_HEADER_BYTES 8

const unsigned audit_calls[] = {
	SYS_read,	SYS_write,	   SYS_close,	    SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl,
	SYS_epoll_create1, SYS_clock_gettime, SYS_exit_group,
};
const size_t audit_call_count = sizeof audit_calls / sizeof audit_calls[0];

static const struct audit_options *options;
static struct hello hello;
static bool open_to_host;
/* As in struct port. */
static bool host_seen;
static bool port_full;
static bool frozen;
static uint64_t processes_sent;
static uint64_t heartbeat_due_us;
static unsigned next_cpu;
/*
 * What had been recorded when the helper looked last: it sends no more than that. Else it would send frames of a few records
 * for as long as the job works.
 */
static uint64_t seen_heads[AUDIT_MAX_CPUS];

static uint8_t outbox[PORT_WRITE_BYTES] __attribute__((aligned(64)));
static size_t outbox_start, outbox_end;
#define FRAME_ROOM (sizeof outbox - CT_AUDIT_FRAME_BYTES)

static uint64_t waiting_calls(unsigned cpu)
{
	return __atomic_load_n(&options->rings[cpu].head, __ATOMIC_ACQUIRE) - options->reader->cpus[cpu].tail;
}

static size_t waiting_bytes(const struct audit_queue *queue)
{
	return __atomic_load_n(queue->producer, __ATOMIC_ACQUIRE) - *queue->consumer;
}

/* Returns whether there is anything to send. */
static bool look(void)
{
	bool found = waiting_bytes(&options->events) > 0;
	for (unsigned cpu = 0; cpu < options->cpus; cpu++) {
		seen_heads[cpu] = __atomic_load_n(&options->rings[cpu].head, __ATOMIC_ACQUIRE);
		found = found || seen_heads[cpu] != options->reader->cpus[cpu].tail;
	}
	return found;
}

/* --- Frames --- */

static void begin_frame(uint8_t type, unsigned cpu, uint64_t first, size_t records, size_t bytes, uint64_t lost)
{
	const struct audit_frame frame = {
		.magic = CT_AUDIT_MAGIC,
		.type = type,
		.version = CT_AUDIT_VERSION,
		.cpu = (uint16_t)cpu,
		.first = first,
		.records = (uint32_t)records,
		.bytes = (uint32_t)bytes,
		.lost = lost,
	};
	memcpy(outbox, &frame, sizeof frame);
	outbox_start = 0;
	outbox_end = sizeof frame + bytes;
}

static bool make_syscalls_frame(unsigned cpu)
{
	const struct audit_ring *ring = &options->rings[cpu];
	uint64_t tail = options->reader->cpus[cpu].tail;
	uint64_t count = seen_heads[cpu] - tail;
	size_t at = tail % AUDIT_SLOTS;
	if (count == 0)
		return false;
	if (count > FRAME_ROOM / CT_SYSCALL_RECORD_BYTES) {
		count = FRAME_ROOM / CT_SYSCALL_RECORD_BYTES;
		/* A call and its sixth argument stay together. */
		if (ring->slots[(tail + count) % AUDIT_SLOTS].flags & CT_SYSCALL_FLAG_SIXTH)
			count--;
	}
	size_t before_end = count < AUDIT_SLOTS - at ? count : AUDIT_SLOTS - at;
	uint8_t *payload = outbox + CT_AUDIT_FRAME_BYTES;
	memcpy(payload, &ring->slots[at], before_end * CT_SYSCALL_RECORD_BYTES);
	memcpy(payload + before_end * CT_SYSCALL_RECORD_BYTES, ring->slots, (count - before_end) * CT_SYSCALL_RECORD_BYTES);
	begin_frame(CT_AUDIT_FRAME_SYSCALLS, cpu, tail, count, count * CT_SYSCALL_RECORD_BYTES, ring->lost);
	__atomic_store_n(&options->reader->cpus[cpu].tail, tail + count, __ATOMIC_RELEASE);
	return true;
}

static bool make_processes_frame(void)
{
	const struct audit_queue *queue = &options->events;
	unsigned long position = *queue->consumer;
	unsigned long end = __atomic_load_n(queue->producer, __ATOMIC_ACQUIRE);
	uint8_t *payload = outbox + CT_AUDIT_FRAME_BYTES;
	size_t bytes = 0, records = 0;
	while (position < end) {
		const uint8_t *header = queue->data + (position & (queue->bytes - 1));
		uint32_t length = __atomic_load_n((const uint32_t *)header, __ATOMIC_ACQUIRE);
		const struct process_record *record = (const void *)(header + QUEUE_HEADER_BYTES);
		if (length & BUSY_BIT)
			break; /* Being written. */
		if (!(length & DISCARD_BIT)) {
			if (record->bytes > FRAME_ROOM - bytes)
				break;
			memcpy(payload + bytes, record, record->bytes);
			bytes += record->bytes;
			records++;
		}
		position += ((length & ~DISCARD_BIT) + QUEUE_HEADER_BYTES + 7) & ~7U;
	}
	if (records > 0)
		begin_frame(CT_AUDIT_FRAME_PROCESSES, CT_NO_CPU, processes_sent, records, bytes, options->tally->lost);
	processes_sent += records;
	__atomic_store_n(queue->consumer, position, __ATOMIC_RELEASE);
	return records > 0;
}

static bool make_frame(void)
{
	if (make_processes_frame())
		return true;
	for (unsigned count = 0; count < options->cpus; count++) {
		unsigned cpu = next_cpu++ % options->cpus;
		if (make_syscalls_frame(cpu))
			return true;
	}
	/* Last, so that between two of them everything is sent that waited at the first. */
	if (now_us() >= heartbeat_due_us) {
		heartbeat_due_us = now_us() + HEARTBEAT_MS * 1000;
		begin_frame(CT_AUDIT_FRAME_HEARTBEAT, CT_NO_CPU, 0, 0, 0, 0);
		return true;
	}
	return false;
}

/* --- The job --- */

/* Stops the job where a ring is half full, and lets it go on when none has a quarter left. */
static void govern_job(void)
{
	size_t events = waiting_bytes(&options->events);
	bool full = events >= AUDIT_EVENTS_BYTES / 2, low = events < AUDIT_EVENTS_BYTES / 4;
	for (unsigned cpu = 0; cpu < options->cpus; cpu++) {
		uint64_t calls = waiting_calls(cpu);
		full = full || calls >= AUDIT_FREEZE_SLOTS;
		low = low && calls < AUDIT_FREEZE_SLOTS / 2;
	}
	if (frozen ? !low : !full)
		return;
	frozen = !frozen;
	if (write(options->freeze_fd, frozen ? "1" : "0", 1) != 1)
		fatal("cannot stop the job: %s", strerror(errno));
}

/* --- The port --- */

/* These return an enum port_end, or this. */
#define GOES_ON -1

static int read_port(void)
{
	uint8_t bytes[256];
	for (;;) {
		ssize_t got = read(options->port_fd, bytes, sizeof bytes);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN) {
			host_seen = host_seen || open_to_host;
			return GOES_ON;
		}
		if (got <= 0)
			return host_seen ? PORT_HUNG_UP : GOES_ON;
		size_t taken = open_to_host ? 0 : hello_scan(&hello, bytes, (size_t)got);
		if (taken < (size_t)got) {
			report("the host says more than hello on " CT_AUDIT_PORT_NAME);
			return PORT_PROTOCOL_ERROR;
		}
		if (!hello_complete(&hello))
			continue;
		memcpy(outbox, hello.bytes, sizeof hello.bytes);
		outbox_end = sizeof hello.bytes;
		open_to_host = true;
	}
}

static int write_port(void)
{
	while (open_to_host && !port_full) {
		if (outbox_start == outbox_end && !make_frame())
			return GOES_ON;
		govern_job();
		ssize_t written = write(options->port_fd, outbox + outbox_start, outbox_end - outbox_start);
		if (written > 0) {
			host_seen = true;
			outbox_start += (size_t)written;
		} else if (written < 0 && (errno == EAGAIN || !host_seen)) {
			port_full = true;
		} else if (written == 0 || errno != EINTR) {
			return PORT_HUNG_UP;
		}
	}
	return GOES_ON;
}

/* --- The loop --- */

/* When to look next, whether anybody rings or not. */
static uint64_t look_due_us;
/* How often nothing was there. */
static unsigned quiet_looks;

static int until_look_ms(void)
{
	uint64_t now = now_us();
	return now < look_due_us ? (int)((look_due_us - now) / 1000) + 1 : 0;
}

/* How long to sleep. */
static int sleep_ms(void)
{
	if (!open_to_host)
		return PORT_IDLE_RETRY_MS;
	if (!host_seen)
		return PORT_HELLO_RETRY_MS;
	if (quiet_looks < ACTIVE_LOOKS)
		return until_look_ms();
	__atomic_store_n(&options->reader->armed, 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	/* Perhaps it came just before. */
	if (look())
		quiet_looks = 0;
	return until_look_ms();
}

enum port_end audit_serve(const struct audit_options *audit_options)
{
	options = audit_options;
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event port_event = { .events = PORT_EVENTS, .data.fd = options->port_fd };
	struct epoll_event doorbell_event = { .events = EPOLLIN | EPOLLET, .data.fd = options->doorbell_fd };
	struct epoll_event flush_event = { .events = EPOLLIN | EPOLLET, .data.fd = options->flush_fd };
	if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, options->port_fd, &port_event) < 0 ||
	    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, options->doorbell_fd, &doorbell_event) < 0 ||
	    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, options->flush_fd, &flush_event) < 0)
		fatal("cannot set up the event loop: %s", strerror(errno));

	for (;;) {
		struct epoll_event events[3];
		bool port_ready = false, rung = false;
		int count = epoll_wait(epoll_fd, events, 3, sleep_ms());
		options->reader->armed = 0;
		for (int index = 0; index < count; index++) {
			/* An edge for each time somebody has rung, whether it is read or not. */
			if (events[index].data.fd != options->port_fd) {
				rung = true;
				continue;
			}
			port_ready = true;
			if (events[index].events & EPOLLOUT)
				port_full = false;
		}
		if (rung)
			*options->doorbell.consumer = __atomic_load_n(options->doorbell.producer, __ATOMIC_ACQUIRE);
		if (count <= 0 && !host_seen) {
			port_ready = true;
			port_full = false;
		}
		if (rung || now_us() >= look_due_us) {
			quiet_looks = look() || rung ? 0 : quiet_looks + 1;
			look_due_us = now_us() + (quiet_looks < ACTIVE_LOOKS ? ACTIVE_MS : IDLE_MS) * 1000;
		}
		govern_job();
		int end = port_ready ? read_port() : GOES_ON;
		if (end == GOES_ON)
			end = write_port();
		if (end != GOES_ON)
			return (enum port_end)end;
		govern_job();
	}
}
