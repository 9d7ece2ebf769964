/*
 * Numbers and strings of the guest link, the same as src/protocol/guest-link.ts; a test compares the two files.
 * docs/guest-link.md has the meaning in prose.
 */
#ifndef CT_PROTOCOL_H
#define CT_PROTOCOL_H

#define CT_READY_LINE "ct-ready 1\n"
#define CT_HELLO_MAGIC "CTHELLO1"
#define CT_HELLO_NONCE_BYTES 32

#define CT_GUEST_PATH_IDENTITY "/v1/identity"
#define CT_GUEST_PATH_EXEC "/v1/exec"
#define CT_GUEST_PATH_STATS "/v1/stats"
#define CT_GUEST_PATH_AUDIT "/v1/audit"
#define CT_GUEST_PATH_CODE "/v1/code"
#define CT_GUEST_PATH_PHASE "/v1/phase"
#define CT_GUEST_PATH_SHUTDOWN "/v1/shutdown"

#define CT_IDENTITY_RECORD_ENTROPY 0x01
#define CT_IDENTITY_RECORD_TIME 0x02
#define CT_IDENTITY_RECORD_HOSTNAME 0x03
#define CT_IDENTITY_RECORD_VOLUME 0x04

#define CT_CODE_RECORD_MODE 0x40
#define CT_CODE_RECORD_TRUST 0x41
#define CT_CODE_RECORD_DIGESTS 0x42
#define CT_CODE_RECORD_INTERPRETER 0x43

#define CT_CODE_MODE_AUDIT 1
#define CT_CODE_MODE_ENFORCE 2
#define CT_CODE_MODE_TERMINATE 3

#define CT_CODE_TRUST_SOURCE 1
#define CT_CODE_TRUST_BUILT 2

#define CT_INTERPRETER_FLAG_INLINE_FORBIDDEN 1
#define CT_INTERPRETER_FLAG_EVERY_ARGUMENT 2

#define CT_PHASE_STAGE 1
#define CT_PHASE_FETCH 2
#define CT_PHASE_BUILD 3

#define CT_EXEC_INPUT_ARG 0x10
#define CT_EXEC_INPUT_ENV 0x11
#define CT_EXEC_INPUT_CWD 0x12
#define CT_EXEC_INPUT_USER 0x13
#define CT_EXEC_INPUT_START 0x14
#define CT_EXEC_INPUT_BUILTIN 0x15
#define CT_EXEC_INPUT_SCRIPT_NAME 0x16
#define CT_EXEC_INPUT_SCRIPT_DATA 0x17
#define CT_EXEC_INPUT_SECRET_NAME 0x18
#define CT_EXEC_INPUT_SECRET_DATA 0x19
#define CT_EXEC_INPUT_STDIN 0x20
#define CT_EXEC_INPUT_SIGNAL 0x21
#define CT_EXEC_INPUT_KILL_ALL 0x22
#define CT_EXEC_INPUT_RESIZE 0x23

#define CT_EXEC_FLAG_STDIN 1
#define CT_EXEC_FLAG_TERMINAL 2

#define CT_EXEC_OUTPUT_STARTED 0x30
#define CT_EXEC_OUTPUT_STDOUT 0x31
#define CT_EXEC_OUTPUT_STDERR 0x32
#define CT_EXEC_OUTPUT_EXIT 0x33
#define CT_EXEC_OUTPUT_FAILED 0x34

#define CT_EXIT_FLAG_OOM_KILLED 1

#define CT_SCRIPT_DIRECTORY "/run/ct/steps"
#define CT_SECRET_DIRECTORY "/run/ct/secrets"
#define CT_PROBE_PATH "/run/ct/bin/probe"
/* A user namespace of the job's, if its image asks for one (subids.h). */
#define CT_SUBORDINATE_USERS_PATH "/run/ct/users"
#define CT_FIRST_SUBORDINATE_ID 100000
#define CT_SUBORDINATE_IDS 65536
#define CT_WORKSPACE_DIRECTORY "/workspace"
#define CT_CONTROL_PORT_NAME "ct.control"
#define CT_EGRESS_PORT_NAME "ct.egress"

#define CT_EGRESS_PATH_DNS "/v1/dns"
#define CT_EGRESS_PATH_EVENTS "/v1/events"

#define CT_ATTEMPT_UDP 1
#define CT_ATTEMPT_RAW_SOCKET 2
#define CT_ATTEMPT_PACKET_SOCKET 3
#define CT_ATTEMPT_OTHER_SOCKET 4
#define CT_ATTEMPT_SUPPRESSED 5

#define CT_ATTEMPT_BYTES 48
#define CT_MAX_DNS_MESSAGE_BYTES 4096

#define CT_RECORD_HEADER_BYTES 5
/* src/protocol/limits.ts: MAX_RECORD_BYTES. Host-controlled length; checked before anything is allocated. */
#define CT_MAX_RECORD_BYTES 65536
/* src/protocol/limits.ts: MAX_SCRIPT_BYTES. */
#define CT_MAX_SCRIPT_BYTES (512 * 1024)
/* src/protocol/limits.ts: MAX_SECRET_NAME_BYTES. */
#define CT_MAX_SECRET_NAME_BYTES 128
/* src/protocol/limits.ts: MAX_PATH_BYTES, names and link targets in a tree stream. */
#define CT_MAX_PATH_BYTES 4095

/* src/protocol/limits.ts: MAX_SIGNED_DIGESTS, MAX_INTERPRETERS, MAX_INTERPRETER_BYTES. Host-controlled. */
#define CT_MAX_SIGNED_DIGESTS 4096
#define CT_MAX_INTERPRETERS 32
#define CT_MAX_INTERPRETER_BYTES 512
/* src/protocol/limits.ts: MAX_INTERPRETER_NAMES, MAX_INTERPRETER_NAME_BYTES. */
#define CT_MAX_INTERPRETER_NAMES 16
#define CT_MAX_INTERPRETER_NAME_BYTES 16

#define CT_TREE_MAGIC "CTTREE1\n"
#define CT_TREE_HEADER_BYTES 29

#endif
