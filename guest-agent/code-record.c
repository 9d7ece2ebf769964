/* Records of `PUT /v1/code`: see code.h. Mode and trust may come once, and have to. */
#include <endian.h>
#include <string.h>
#include <sys/mman.h>

#include "code.h"

#define DIGEST_BYTES 32

struct code_request *code_request_new(void)
{
	void *pages = mmap(NULL, sizeof(struct code_request), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return pages == MAP_FAILED ? NULL : pages;
}

void code_request_free(struct code_request *request)
{
	if (request)
		munmap(request, sizeof *request);
}

static int refuse(const char **reason, const char *text)
{
	*reason = text;
	return -1;
}

static int add_digests(struct code_settings *settings, const uint8_t *payload, size_t length, const char **reason)
{
	size_t count = length / DIGEST_BYTES;
	if (length == 0 || length % DIGEST_BYTES)
		return refuse(reason, "digests have 32 bytes");
	if (count > CT_MAX_SIGNED_DIGESTS - settings->digest_count)
		return refuse(reason, "too many digests");
	for (size_t index = 0; index < count; index++) {
		__u64 *entry = settings->digests[settings->digest_count];
		memcpy(entry, payload + index * DIGEST_BYTES, DIGEST_BYTES);
		for (int word = 0; word < 4; word++)
			entry[word] = be64toh(entry[word]);
		int word = 0;
		while (settings->digest_count && word < 4 && entry[word] == entry[word - 4])
			word++;
		if (settings->digest_count && (word == 4 || entry[word] < entry[word - 4]))
			return refuse(reason, "digests are not in ascending order");
		settings->digest_count++;
	}
	return 0;
}

static int add_ending(struct code_interpreter *interpreter, const char *text, size_t length, const char **reason)
{
	if (interpreter->ending_count == CT_MAX_INTERPRETER_NAMES)
		return refuse(reason, "too many endings of an interpreter");
	struct code_ending *ending = &interpreter->endings[interpreter->ending_count++];
	for (size_t index = 0; index < length; index++) {
		size_t from_right = length - 1 - index;
		__u64 *where = ending->text + (from_right < 8), *mask = ending->mask + (from_right < 8);
		*where |= (__u64)(uint8_t)text[index] << (from_right % 8 * 8);
		*mask |= 0xffULL << (from_right % 8 * 8);
	}
	return 0;
}

static int add_option(struct code_interpreter *interpreter, const char *text, size_t length, const char **reason)
{
	__u64 letter = length == 2 ? code_letter_bit((__u8)text[1]) : 0;
	if (length < 2 || strcmp(text, "--") == 0)
		return refuse(reason, "not an option of an interpreter");
	if (letter) {
		interpreter->letters |= letter;
		return 0;
	}
	if (interpreter->option_count == CT_MAX_INTERPRETER_NAMES)
		return refuse(reason, "too many options of an interpreter");
	__u64 *option = interpreter->options[interpreter->option_count++];
	for (size_t index = 0; index < length; index++)
		option[index / 8] |= (__u64)(uint8_t)text[index] << (index % 8 * 8);
	return 0;
}

static int add_interpreter(struct code_request *request, const uint8_t *payload, size_t length, const char **reason)
{
	struct code_settings *settings = &request->settings;
	const uint8_t known = CT_INTERPRETER_FLAG_INLINE_FORBIDDEN | CT_INTERPRETER_FLAG_EVERY_ARGUMENT;
	if (settings->interpreter_count == CT_MAX_INTERPRETERS)
		return refuse(reason, "too many interpreters");
	if (length < 4 || length > CT_MAX_INTERPRETER_BYTES || payload[0] & ~known || payload[1] != '/' ||
	    payload[length - 1] != '\0')
		return refuse(reason, "not an interpreter");
	struct code_interpreter *interpreter = &settings->interpreters[settings->interpreter_count];
	char *path = request->paths[settings->interpreter_count];
	interpreter->flags = payload[0];
	memcpy(path, payload + 1, length - 1);
	for (const char *at = path + strlen(path) + 1; at < path + length - 1; at += strlen(at) + 1) {
		size_t bytes = strlen(at);
		if (bytes == 0 || bytes > CT_MAX_INTERPRETER_NAME_BYTES || strchr(at, '/'))
			return refuse(reason, "neither an ending nor an option of an interpreter");
		if ((at[0] == '-' ? add_option : add_ending)(interpreter, at, bytes, reason) < 0)
			return -1;
	}
	settings->interpreter_count++;
	return 0;
}

int code_record(struct code_request *request, uint8_t type, const uint8_t *payload, size_t length, const char **reason)
{
	struct code_settings *settings = &request->settings;
	switch (type) {
	case CT_CODE_RECORD_MODE:
		if (settings->mode || length != 1 || payload[0] < CT_CODE_MODE_AUDIT || payload[0] > CT_CODE_MODE_TERMINATE)
			return refuse(reason, "not a mode");
		settings->mode = payload[0];
		return 0;
	case CT_CODE_RECORD_TRUST:
		if (request->has_trust || length != 1 || payload[0] & ~(CT_CODE_TRUST_SOURCE | CT_CODE_TRUST_BUILT))
			return refuse(reason, "not what is trusted");
		request->has_trust = true;
		settings->trusted = payload[0] | CODE_LABEL_STEP | CODE_LABEL_SIGNED;
		return 0;
	case CT_CODE_RECORD_DIGESTS:
		return add_digests(settings, payload, length, reason);
	case CT_CODE_RECORD_INTERPRETER:
		return add_interpreter(request, payload, length, reason);
	default:
		return refuse(reason, "not a record about code");
	}
}

bool code_complete(const struct code_request *request)
{
	return request->settings.mode && request->has_trust;
}
