/* Loads bpf/egress.bpf.c, which is part of this program, and keeps it attached for as long as PID 1 lives. */
#ifndef CT_STEERING_H
#define CT_STEERING_H

#include <stddef.h>
#include <stdint.h>

/* Ends the VM if any part of it cannot be loaded or attached: without it a job could do what nobody would hear of. */
void steering_start(const int listeners[2]);

/* --- For the egress helper, which inherits the mappings. --- */

/* Becomes readable when an attempt has been recorded; edge-triggered. */
int steering_attempts_fd(void);

/* Takes recorded attempts, CT_ATTEMPT_BYTES each, as long as there is room. Returns bytes. */
size_t steering_take_attempts(uint8_t *records, size_t room);

/* How many attempts have not been recorded since boot, because there were too many. */
uint64_t steering_suppressed(void);

#endif
