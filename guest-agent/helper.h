/* The egress helper: the process that runs egress.c, with nothing but the descriptors that it needs. */
#ifndef CT_HELPER_H
#define CT_HELPER_H

#include "egress.h"

/* User and group of the helper alone: far from those that images give to people and services. */
#define HELPER_ID 1700000001

/*
 * Forks it, into that cgroup, and returns a descriptor of the process (pidfd_open(2)) when it is confined. The parent's
 * copies of its descriptors are closed. Ends the VM if it cannot be confined. Legal when everything is ready that it
 * inherits, steering.c's mappings too.
 */
int helper_start(const struct egress_options *options, int cgroup_fd);

#endif
