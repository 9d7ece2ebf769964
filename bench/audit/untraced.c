/*
 * Takes the place of guest-agent/tracing.c in the guest that `ct bench audit` compares with: nothing is loaded, attached or
 * recorded. All else is as ever: the helper runs, and its heartbeats are a record of nothing.
 */
#include "tracing.h"

#include "code.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "console.h"

static unsigned cpus(void)
{
	return (unsigned)sysconf(_SC_NPROCESSORS_CONF);
}

/* As much as the other has, so that the job has the same memory. */
uint64_t tracing_memory_bytes(void)
{
	return cpus() * sizeof(struct audit_ring) + AUDIT_EVENTS_BYTES + CODE_LABEL_BUCKETS_BYTES + 2 * 1024 * 1024;
}

static void *zeros(size_t bytes)
{
	void *memory = calloc(1, bytes);
	if (!memory)
		fatal("no memory for empty rings");
	return memory;
}

static void empty_queue(struct audit_queue *queue)
{
	queue->bytes = 4096;
	queue->consumer = zeros(sizeof *queue->consumer);
	queue->producer = zeros(sizeof *queue->producer);
	queue->data = zeros(queue->bytes);
}

void tracing_start(int job_fd, int root_fd, uint64_t root_device, int switch_fd, struct audit_options *helper)
{
	(void)job_fd, (void)root_fd, (void)root_device, (void)switch_fd;
	helper->cpus = cpus();
	helper->rings = zeros(helper->cpus * sizeof(struct audit_ring));
	helper->tally = zeros(sizeof(struct audit_tally));
	helper->reader = zeros(sizeof(struct audit_reader));
	empty_queue(&helper->events);
	empty_queue(&helper->doorbell);
	helper->doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	helper->flush_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (helper->doorbell_fd < 0 || helper->flush_fd < 0)
		fatal("cannot make a doorbell");
}

void tracing_forget(const struct audit_options *helper)
{
	(void)helper;
}

struct code_settings *tracing_code(void)
{
	static struct code_settings code;
	return &code;
}

void tracing_position(char *text, size_t size)
{
	size_t length = (size_t)snprintf(text, size, "processes=0\n");
	for (unsigned cpu = 0, count = cpus(); cpu < count && length < size; cpu++)
		length += (size_t)snprintf(text + length, size - length, "cpu=0\n");
}
