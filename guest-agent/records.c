/*
 * Incremental record decoder. The bytes come from the host; the announced length is checked before a byte of it is
 * kept, and at most one record is held.
 */
#include "records.h"

#include <stdlib.h>
#include <string.h>

#include "protocol.h"

void record_decoder_init(struct record_decoder *decoder, bool (*streams)(uint8_t type))
{
	memset(decoder, 0, sizeof *decoder);
	decoder->streams = streams;
}

void record_decoder_free(struct record_decoder *decoder)
{
	free(decoder->carry);
	decoder->carry = NULL;
}

static int push(struct record_decoder *decoder, const uint8_t *data, size_t length, record_handler *handler,
		void *context)
{
	while (length > 0 || decoder->header_bytes == CT_RECORD_HEADER_BYTES) {
		if (decoder->header_bytes < CT_RECORD_HEADER_BYTES) {
			size_t take = CT_RECORD_HEADER_BYTES - (size_t)decoder->header_bytes;
			if (take > length)
				take = length;
			memcpy(decoder->header + decoder->header_bytes, data, take);
			decoder->header_bytes = (uint8_t)(decoder->header_bytes + take);
			data += take;
			length -= take;
			if (decoder->header_bytes < CT_RECORD_HEADER_BYTES)
				return 0;
			decoder->length = get_u32(decoder->header + 1);
			decoder->seen = 0;
			if (decoder->length > CT_MAX_RECORD_BYTES)
				return -1;
		}
		uint8_t type = decoder->header[0];
		size_t rest = decoder->length - decoder->seen;
		size_t take = rest < length ? rest : length;
		bool streamed = decoder->streams && decoder->streams(type);
		if (take == 0 && rest > 0)
			return 0;
		if (streamed || take == decoder->length) {
			bool first = decoder->seen == 0;
			decoder->seen += (uint32_t)take;
			/* Reset before the call: the handler may look at record_decoder_pending. */
			if (decoder->seen == decoder->length)
				decoder->header_bytes = 0;
			if (handler(context, type, data, take, first) < 0)
				return -1;
		} else {
			if (!decoder->carry)
				decoder->carry = malloc(decoder->length);
			if (!decoder->carry)
				return -1;
			memcpy(decoder->carry + decoder->seen, data, take);
			decoder->seen += (uint32_t)take;
			if (decoder->seen == decoder->length) {
				decoder->header_bytes = 0;
				int result = handler(context, type, decoder->carry, decoder->length, true);
				free(decoder->carry);
				decoder->carry = NULL;
				if (result < 0)
					return -1;
			}
		}
		data += take;
		length -= take;
	}
	return 0;
}

int record_decoder_push(struct record_decoder *decoder, const uint8_t *data, size_t length, record_handler *handler,
			void *context)
{
	if (decoder->broken)
		return -1;
	if (push(decoder, data, length, handler, context) < 0) {
		decoder->broken = true;
		return -1;
	}
	return 0;
}

bool record_decoder_pending(const struct record_decoder *decoder)
{
	return decoder->header_bytes > 0;
}
