/* What makes one clone of a template unlike every other: randomness, time, names, volume. */
#ifndef CT_IDENTITY_H
#define CT_IDENTITY_H

#include <stddef.h>
#include <stdint.h>

#include "volume.h"

#define MIN_ENTROPY_BYTES 64
#define MAX_ENTROPY_BYTES 1024

struct identity_request {
	uint8_t entropy[MAX_ENTROPY_BYTES];
	size_t entropy_bytes;
	uint64_t time_ns;
	char hostname[64];
	char volume[128];
};

/*
 * Takes one record of the request; -1 if it is malformed. identity_complete says whether all of them are there.
 */
int identity_record(struct identity_request *request, uint8_t type, const uint8_t *payload, size_t length);
int identity_complete(const struct identity_request *request);

/* Before the snapshot, in the final root: opens what identity_apply will write to. */
void identity_prepare(void);

/*
 * Applies the request and wipes its entropy. Returns 0 with `key=value` lines in `text`, or -1 with the reason.
 * Legal once; on failure the VM is of no use any more.
 */
int identity_apply(struct identity_request *request, const struct job_user *user, char *text, size_t text_size);

#endif
