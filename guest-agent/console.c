/* Console messages and the end of the VM: see console.h. */
#include "console.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

static int console_fd = -1;

void console_open(void)
{
	/* O_NONBLOCK: a console that nobody reads must not be able to stop PID 1. */
	console_fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (console_fd < 0)
		console_fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
}

static void print_line(const char *format, va_list arguments)
{
	char line[512];
	int length = snprintf(line, sizeof line, "ct-guest: ");
	int more = vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
	if (more > 0)
		length += more;
	if (length > (int)sizeof line - 2)
		length = (int)sizeof line - 2;
	line[length++] = '\n';
	if (console_fd >= 0 && write(console_fd, line, (size_t)length) < 0)
		return; /* Nowhere else to complain. */
}

void report(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	print_line(format, arguments);
	va_end(arguments);
}

void fatal(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	print_line(format, arguments);
	va_end(arguments);
	power_off();
}

void power_off(void)
{
	/*
	 * A reset, not an ACPI power-off: every VMM of this project runs its guests without reboot, so a reset ends
	 * the VM on each of them, while Firecracker has no power-off and would leave a halted guest behind.
	 */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}
