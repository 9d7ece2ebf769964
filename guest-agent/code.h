/* Which code may run (docs/adr/0017-signed-code.md): what the host says about it, and how the BPF programs are told. */
#ifndef CT_AGENT_CODE_H
#define CT_AGENT_CODE_H

#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

#include "../bpf/code.h"

/* `PUT /v1/code`, as far as it has come. */
struct code_request {
	bool has_trust;
	char paths[CT_MAX_INTERPRETERS][CT_MAX_INTERPRETER_BYTES];
	/* Without what only a look at the files can say. */
	struct code_settings settings;
};

/* Large, and mostly never touched. NULL: no memory. */
struct code_request *code_request_new(void);
void code_request_free(struct code_request *request);

/* Takes one record of the request; -1 if it is malformed, with a reason. code_complete says whether all of them are there. */
int code_record(struct code_request *request, uint8_t type, const uint8_t *payload, size_t length, const char **reason);
bool code_complete(const struct code_request *request);

/* Before the snapshot, in the final root: looks for what is looked for later, so that it is not read from the disk then. */
void code_prepare(void);

/*
 * From here on code is judged, and the phase is `stage`. `job_fd` is the job's cgroup. Returns 0, or -1 with the reason; nothing
 * is judged then. Legal once.
 */
int code_apply(struct code_request *request, int job_fd, char *text, size_t text_size);

/* Legal after code_apply, when nothing of the job runs. */
void code_set_phase(uint8_t phase);

/* Whether it matters to know what the digest of a file is that is staged. */
bool code_has_digests(void);

#endif
