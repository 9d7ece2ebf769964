/* Decoder for the record framing of src/protocol/records.ts. */
#ifndef CT_RECORDS_H
#define CT_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Called for each record. Whole records are handed over in one piece; those that `streams` accepts come in
 * fragments as they arrive, so that nothing needs to be kept: `first` marks the start of one. An empty payload is
 * one call with length 0. Returns 0, or -1 to stop decoding.
 */
typedef int record_handler(void *context, uint8_t type, const uint8_t *payload, size_t length, bool first);

struct record_decoder {
	bool (*streams)(uint8_t type);
	uint8_t *carry; /* Payload of a record that came in pieces; NULL unless there is one. */
	uint32_t length;
	uint32_t seen;
	uint8_t header[5];
	uint8_t header_bytes;
	bool broken;
};

void record_decoder_init(struct record_decoder *decoder, bool (*streams)(uint8_t type));
void record_decoder_free(struct record_decoder *decoder);

/* Returns 0, or -1 when a record is too long, memory is short or the handler said so; the decoder is dead then. */
int record_decoder_push(struct record_decoder *decoder, const uint8_t *data, size_t length, record_handler *handler,
			void *context);

/* Whether the bytes so far end in the middle of a record. */
bool record_decoder_pending(const struct record_decoder *decoder);

static inline void put_u32(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 24);
	at[1] = (uint8_t)(value >> 16);
	at[2] = (uint8_t)(value >> 8);
	at[3] = (uint8_t)value;
}

static inline uint32_t get_u32(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void put_u64(uint8_t *at, uint64_t value)
{
	put_u32(at, (uint32_t)(value >> 32));
	put_u32(at + 4, (uint32_t)value);
}

static inline uint64_t get_u64(const uint8_t *at)
{
	return (uint64_t)get_u32(at) << 32 | get_u32(at + 4);
}

#endif
