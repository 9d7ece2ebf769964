/*
 * The guest's half of the audit record: moves what the BPF programs have recorded (bpf/audit.bpf.c) to the port ct.audit,
 * and stops the job while the host does not keep up. Reads nothing of it but lengths.
 */
#ifndef CT_AUDIT_HELPER_H
#define CT_AUDIT_HELPER_H

#include <linux/types.h>
#include <stddef.h>
#include <stdint.h>

#include "../bpf/audit.h"
#include "port.h"

/* A BPF ring buffer (Documentation/bpf/ringbuf.rst), mapped. */
struct audit_queue {
	volatile unsigned long *consumer;
	const volatile unsigned long *producer;
	const uint8_t *data; /* Mapped twice in a row. */
	size_t bytes;	     /* A power of two. */
};

struct audit_options {
	int port_fd;	 /* Non-blocking. */
	int doorbell_fd; /* Readable when there is reason to look. */
	int freeze_fd;	 /* cgroup.freeze of the job. */
	int flush_fd;	 /* An eventfd: the host waits for what is recorded. */
	unsigned cpus;
	const struct audit_ring *rings; /* One a CPU. */
	struct audit_reader *reader;
	const struct audit_tally *tally;
	struct audit_queue events;
	struct audit_queue doorbell;
};

/* The system calls it makes. */
extern const unsigned audit_calls[];
extern const size_t audit_call_count;

/* Serves until the channel ends and returns why. Until the host says hello, what is recorded waits in the rings. */
enum port_end audit_serve(const struct audit_options *options);

#endif
