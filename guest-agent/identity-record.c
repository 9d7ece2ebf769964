/* Records of `PUT /v1/identity`: see identity.h. Each may come once, and all of them must. */
#include <string.h>

#include "identity.h"
#include "protocol.h"
#include "records.h"

int identity_record(struct identity_request *request, uint8_t type, const uint8_t *payload, size_t length)
{
	switch (type) {
	case CT_IDENTITY_RECORD_ENTROPY:
		if (request->entropy_bytes || length < MIN_ENTROPY_BYTES || length > MAX_ENTROPY_BYTES)
			return -1;
		memcpy(request->entropy, payload, length);
		request->entropy_bytes = length;
		return 0;
	case CT_IDENTITY_RECORD_TIME:
		if (request->time_ns || length != 8)
			return -1;
		request->time_ns = get_u64(payload);
		return 0;
	case CT_IDENTITY_RECORD_HOSTNAME:
		if (request->hostname[0] || length < 1 || length >= sizeof request->hostname)
			return -1;
		for (size_t index = 0; index < length; index++) {
			uint8_t byte = payload[index];
			if (!(byte >= 'a' && byte <= 'z') && !(byte >= '0' && byte <= '9') && byte != '-')
				return -1;
		}
		memcpy(request->hostname, payload, length);
		return 0;
	case CT_IDENTITY_RECORD_VOLUME:
		if (request->volume[0] || length < 1 || length >= sizeof request->volume || memchr(payload, 0, length))
			return -1;
		memcpy(request->volume, payload, length);
		return 0;
	default:
		return -1;
	}
}

int identity_complete(const struct identity_request *request)
{
	return request->entropy_bytes && request->time_ns && request->hostname[0] && request->volume[0];
}
