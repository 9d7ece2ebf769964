/* How a session begins: the host's magic and nonce, behind whatever a snapshot left on the wire. */
#ifndef CT_HELLO_H
#define CT_HELLO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

#define CT_HELLO_MAGIC_BYTES (sizeof CT_HELLO_MAGIC - 1)

struct hello {
	uint8_t bytes[CT_HELLO_MAGIC_BYTES + CT_HELLO_NONCE_BYTES];
	size_t count;
};

static inline bool hello_complete(const struct hello *hello)
{
	return hello->count == sizeof hello->bytes;
}

/*
 * Takes bytes until magic and nonce are complete and returns how many it took. Anything before the magic is dropped.
 * The magic's first byte occurs in it only once, so after a mismatch only the current byte can begin a new one.
 */
static inline size_t hello_scan(struct hello *hello, const uint8_t *data, size_t length)
{
	for (size_t index = 0; index < length; index++) {
		uint8_t byte = data[index];
		if (hello->count < CT_HELLO_MAGIC_BYTES && byte != (uint8_t)CT_HELLO_MAGIC[hello->count]) {
			hello->count = 0;
			if (byte != (uint8_t)CT_HELLO_MAGIC[0])
				continue;
		}
		hello->bytes[hello->count++] = byte;
		if (hello_complete(hello))
			return index + 1;
	}
	return length;
}

#endif
