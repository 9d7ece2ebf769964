/*
 * A helper: a process of the guest agent that serves a port of its own, with nothing but the descriptors and the memory that
 * it needs. When one ends, for whatever reason, the VM does (link.c).
 */
#ifndef CT_HELPER_H
#define CT_HELPER_H

#include <stddef.h>
#include <sys/resource.h>

/* Users and groups of helpers alone: far from those that images give to people and services. */
#define EGRESS_HELPER_ID 1700000001
#define AUDIT_HELPER_ID 1700000002

struct helper {
	const char *name; /* `ct-egress`: at most 15 bytes. */
	unsigned id;
	/* Open files at most. */
	rlim_t files;
	/* 0, or that of SCHED_FIFO: before everything of the job. */
	int priority;
	/* Descriptors that it keeps; all others are closed. */
	const int *fds;
	size_t fd_count;
	/* System calls that it makes; any other ends it. */
	const unsigned *calls;
	size_t call_count;
	/* What it does; returns its exit status. */
	int (*serve)(const void *options);
	const void *options;
};

/* At most this many of `calls`. */
#define HELPER_MAX_CALLS 32
/* At most this many of `fds`. */
#define HELPER_MAX_FDS 8

/*
 * Forks it, into that cgroup, and returns a descriptor of the process (pidfd_open(2)) when it is confined. Ends the VM if it
 * cannot be confined. Legal when everything is ready that it inherits: mappings, too.
 */
int helper_start(const struct helper *helper, int cgroup_fd);

#endif
