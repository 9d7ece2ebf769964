/* Processes of the job, one per HTTP/2 stream: setup, start, pipes, signals, end. */
#ifndef CT_EXEC_H
#define CT_EXEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link.h"

struct exec;

/* `options` must outlive every exec. */
void exec_init(const struct link_options *options);

/* NULL when memory is short. */
struct exec *exec_new(struct stream *stream);

/* Whether records of this type are handed over in fragments (records.h). */
bool exec_streams(uint8_t type);

/*
 * One record, or a fragment of one. Returns how many bytes of the payload are held and will be given to
 * stream_consume later, or -1 if the request is malformed, with a reason for the host.
 */
int exec_input(struct exec *exec, uint8_t type, const uint8_t *payload, size_t length, bool first,
	       const char **reason);

/* The request body has ended. -1 if the program was never started. */
int exec_input_end(struct exec *exec);

/* The stream is gone: kills the process group if it still runs. `exec` must not be used afterwards. */
void exec_detach(struct exec *exec);

/* Reads from the processes that have something to say; true while there is more to do. */
bool exec_run(void);

/* Nothing else to do: prepares the next start. */
void exec_idle(void);

/* Takes the status of every process that has ended, ours or orphaned. */
void exec_reap(void);

/* Kills everything that runs in the job. */
void exec_kill_all(void);

#endif
