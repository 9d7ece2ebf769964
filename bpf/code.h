/*
 * Which code may run: what PID 1 says and the BPF programs go by (docs/adr/0017-signed-code.md). No includes: the includer
 * brings protocol.h, and __u8 to __u64.
 */
#ifndef CT_CODE_H
#define CT_CODE_H

/*
 * What vouches for a file, as bits. The first two are those of CT_CODE_TRUST_: policy says whether they count. The others always
 * do: what PID 1 wrote, and what was found to have the digest of signed code.
 */
#define CODE_LABEL_SOURCE CT_CODE_TRUST_SOURCE
#define CODE_LABEL_BUILT CT_CODE_TRUST_BUILT
#define CODE_LABEL_STEP 4
#define CODE_LABEL_SIGNED 8
/* Vouches for nothing: it has been mapped to be executed, which nothing keeps from being written. */
#define CODE_LABEL_MAPPED 16

/* Files that have one at once. One that there is no room for has none. */
#define CODE_MAX_LABELS (256 * 1024)
/* A power of two of 16 bytes each, for as many. */
#define CODE_LABEL_BUCKETS_BYTES (4ULL * 1024 * 1024)
/* What the kernel takes for one. */
#define CODE_LABEL_BYTES 96
/* Processes of interpreters; pids.max of the job is below. */
#define CODE_MAX_PROCESSES 4096

/* The end of a name, in the last bytes of it: the text, and which bits of these it has. */
struct code_ending {
	__u64 text[2];
	__u64 mask[2];
};

struct code_interpreter {
	__u64 inode;
	__u64 bytes;
	__u32 device;
	__u32 flags;   /* CT_INTERPRETER_FLAG_ */
	__u64 letters; /* Options of one letter, by code_letter_bit. */
	__u32 ending_count;
	__u32 option_count;
	struct code_ending endings[CT_MAX_INTERPRETER_NAMES];
	/* Little endian, from the left. */
	__u64 options[CT_MAX_INTERPRETER_NAMES][2];
};

/* Written by PID 1, once but for the phase. */
struct code_settings {
	__u32 mode; /* 0: nothing is judged. */
	__u32 phase;
	__u32 trusted; /* Labels. */
	__u32 interpreter_count;
	__u32 digest_count;
	__u32 unused;
	struct code_interpreter interpreters[CT_MAX_INTERPRETERS];
	/* Ascending; each as four numbers, big endian as the digest is. */
	__u64 digests[CT_MAX_SIGNED_DIGESTS][4];
};

static inline __u64 code_letter_bit(__u8 letter)
{
	__u8 lower = letter | 0x20;
	if (lower < 'a' || lower > 'z')
		return 0;
	return 1ULL << (lower - 'a' + (letter == lower ? 0 : 32));
}

#endif
