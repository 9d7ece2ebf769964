/* Figures about the guest for `GET /v1/stats`. */
#ifndef CT_STATS_H
#define CT_STATS_H

#include <stddef.h>

/* Writes `key=value` lines and returns their length. `cgroup_fd` is the job's cgroup or -1. */
size_t stats_text(int cgroup_fd, char *text, size_t size);

#endif
