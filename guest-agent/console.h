/*
 * Messages for whoever reads the VM's console, the only place where a guest that never becomes ready can explain
 * itself. The test programs bring an implementation of their own.
 */
#ifndef CT_CONSOLE_H
#define CT_CONSOLE_H

#include <stdint.h>
#include <time.h>

/* Opens the console through an already mounted devtmpfs; without one, messages go to the kernel log. */
void console_open(void);

/* One line on the console. */
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line on the console, then the VM ends: a guest that cannot do its work must not look alive. */
_Noreturn void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Ends the VM at once. Nothing is flushed: what the guest wrote dies with its key anyway. */
_Noreturn void power_off(void);

/* Monotonic microseconds, for measuring. */
static inline uint64_t now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

#endif
