/* Loads bpf/audit.bpf.c, which is part of this program, and keeps it attached for as long as PID 1 lives. */
#ifndef CT_TRACING_H
#define CT_TRACING_H

#include <stdint.h>

#include "audit.h"

/* Kernel memory that is taken for the rings and the rest. */
uint64_t tracing_memory_bytes(void);

/*
 * From here on every call of the cgroup `job_fd` is recorded, and nobody loads or changes BPF programs, PID 1 no more than
 * others. `root_fd` is the root of the cgroups. Fills in what the helper reads; `root_device` is that of the image, as
 * stat(2) tells it; `switch_fd` is kernel.ftrace_enabled, open for writing. Ends the VM if any part cannot be loaded or
 * attached, or if what switches it off still works.
 */
void tracing_start(int job_fd, int root_fd, uint64_t root_device, int switch_fd, struct audit_options *helper);

/* Takes from PID 1 what only the helper writes, and gives it what the helper has no part in. */
void tracing_forget(const struct audit_options *helper);

/* What PID 1 tells the programs about code. Not inherited by what it forks. */
struct code_settings *tracing_code(void);

/* The text of GET /v1/audit. Whoever asks waits until that much has come, so the helper is told to send it. */
void tracing_position(char *text, size_t size);

#endif
