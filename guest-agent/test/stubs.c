/* What a guest agent without a virtual machine cannot do: console, identity, volume. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "code.h"
#include "console.h"
#include "identity.h"
#include "volume.h"

void report(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

void fatal(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(4);
}

int identity_apply(struct identity_request *request, const struct job_user *user, char *text, size_t text_size)
{
	(void)user;
	explicit_bzero(request->entropy, sizeof request->entropy);
	snprintf(text, text_size, "hostname=%s\nvolume=%s\n", request->hostname, request->volume);
	return strcmp(request->hostname, "broken") == 0 ? -1 : 0;
}

int code_apply(struct code_request *request, int job_fd, char *text, size_t text_size)
{
	(void)job_fd;
	snprintf(text, text_size, "interpreters=%u\n", request->settings.interpreter_count);
	return 0;
}

void code_set_phase(uint8_t phase)
{
	(void)phase;
}

bool code_has_digests(void)
{
	return false;
}

void volume_close(void)
{
}

void volume_usage(uint64_t *used_kib, uint64_t *size_kib)
{
	*used_kib = *size_kib = 0;
}
