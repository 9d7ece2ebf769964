/* Tells the BPF programs which code may run: see code.h. */
#include "code.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "files.h"
#include "tracing.h"

/* Below this a job cannot do anything, and a VM that small is better told so. */
#define MIN_JOB_BYTES (64ULL << 20)

/* Labels are kernel memory that is nobody's: the job gets less, as it can fill them. */
static int reserve_labels(int job_fd, char *text, size_t text_size)
{
	char limit[32];
	if (job_fd < 0 || file_read_at(job_fd, "memory.max", limit, sizeof limit) < 0) {
		snprintf(text, text_size, "cannot read the job's memory limit: %s", strerror(errno));
		return -1;
	}
	unsigned long long bytes = strtoull(limit, NULL, 10), labels = (unsigned long long)CODE_MAX_LABELS * CODE_LABEL_BYTES;
	if (bytes < labels + MIN_JOB_BYTES) {
		snprintf(text, text_size, "%llu MiB of memory are too little to know where code is from", bytes >> 20);
		return -1;
	}
	snprintf(limit, sizeof limit, "%llu", bytes - labels);
	if (file_write_at(job_fd, "memory.max", limit) < 0) {
		snprintf(text, text_size, "cannot set the job's memory limit: %s", strerror(errno));
		return -1;
	}
	return 0;
}

/* Where interpreters usually are (policies/ct/exec.rego); finding a few of them takes 100 ms under emulation. */
static const char *const usual_directories[] = { "/bin", "/usr/bin", "/usr/local/bin" };
static const char *const usual_names[] = { "sh",     "bash",	"dash", "ksh", "zsh", "python3", "node",
					   "nodejs", "perl", "ruby", "php",  "lua",	 "luajit",  "make" };

void code_prepare(void)
{
	struct stat status;
	char path[64];
	for (size_t directory = 0; directory < sizeof usual_directories / sizeof usual_directories[0]; directory++) {
		for (size_t name = 0; name < sizeof usual_names / sizeof usual_names[0]; name++) {
			snprintf(path, sizeof path, "%s/%s", usual_directories[directory], usual_names[name]);
			if (stat(path, &status) < 0)
				continue; /* What is not there is remembered, too. */
		}
	}
}

/* Leaves out what is not there. Links are followed: a process is known by the file that it really runs. */
static void find_interpreters(struct code_request *request)
{
	struct code_settings *settings = &request->settings;
	__u32 found = 0, named = settings->interpreter_count;
	for (__u32 index = 0; index < named; index++) {
		struct stat status;
		struct code_interpreter interpreter = settings->interpreters[index];
		if (stat(request->paths[index], &status) < 0 || !S_ISREG(status.st_mode))
			continue;
		/* As the kernel has it (include/linux/kdev_t.h). */
		interpreter.device = major(status.st_dev) << 20 | minor(status.st_dev);
		interpreter.inode = status.st_ino;
		interpreter.bytes = (__u64)status.st_size;
		settings->interpreters[found++] = interpreter;
	}
	settings->interpreter_count = found;
}

int code_apply(struct code_request *request, int job_fd, char *text, size_t text_size)
{
	struct code_settings *shared = tracing_code();
	__u32 mode = request->settings.mode;
	if (reserve_labels(job_fd, text, text_size) < 0)
		return -1;
	find_interpreters(request);
	request->settings.mode = 0;
	request->settings.phase = CT_PHASE_STAGE;
	/* What there is of it: the rest is zero, and stays shared with the template. */
	memcpy(shared->interpreters, request->settings.interpreters,
	       request->settings.interpreter_count * sizeof shared->interpreters[0]);
	memcpy(shared->digests, request->settings.digests, request->settings.digest_count * sizeof shared->digests[0]);
	memcpy(shared, &request->settings, offsetof(struct code_settings, interpreters));
	/* Last: from here on it counts. */
	__atomic_store_n(&shared->mode, mode, __ATOMIC_SEQ_CST);
	snprintf(text, text_size, "interpreters=%u\n", shared->interpreter_count);
	return 0;
}

void code_set_phase(uint8_t phase)
{
	__atomic_store_n(&tracing_code()->phase, phase, __ATOMIC_SEQ_CST);
}

bool code_has_digests(void)
{
	return tracing_code()->digest_count > 0;
}
