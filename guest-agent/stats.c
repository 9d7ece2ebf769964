/* Figures about the guest: see stats.h. A figure the kernel does not give is 0. */
#include "stats.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "volume.h"

static uint64_t value_in(int directory, const char *file, const char *key)
{
	char text[4096];
	if (directory < 0 || file_read_at(directory, file, text, sizeof text) < 0)
		return 0;
	const char *found = strstr(text, key);
	return found ? strtoull(found + strlen(key), NULL, 10) : 0;
}

size_t stats_text(int cgroup_fd, char *text, size_t size)
{
	char memory[2048] = "";
	struct timespec now;
	uint64_t used_kib, size_kib;
	int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	clock_gettime(CLOCK_MONOTONIC, &now);
	volume_usage(&used_kib, &size_kib);
	if (proc >= 0)
		file_read_at(proc, "meminfo", memory, sizeof memory);
	const char *total = strstr(memory, "MemTotal:");
	const char *available = strstr(memory, "MemAvailable:");
	int length = snprintf(
		text, size,
		"uptime_ms=%llu\nmemory_total_kib=%llu\nmemory_available_kib=%llu\njob_memory_peak_kib=%llu\n"
		"job_oom_kills=%llu\njob_processes=%llu\nvolume_used_kib=%llu\nvolume_size_kib=%llu\n",
		(unsigned long long)now.tv_sec * 1000 + (unsigned long long)now.tv_nsec / 1000000,
		total ? strtoull(total + strlen("MemTotal:"), NULL, 10) : 0,
		available ? strtoull(available + strlen("MemAvailable:"), NULL, 10) : 0,
		(unsigned long long)value_in(cgroup_fd, "memory.peak", "") / 1024,
		(unsigned long long)value_in(cgroup_fd, "memory.events", "oom_kill "),
		(unsigned long long)value_in(cgroup_fd, "pids.current", ""), (unsigned long long)used_kib,
		(unsigned long long)size_kib);
	if (proc >= 0)
		close(proc);
	return length < 0 ? 0 : (size_t)length < size ? (size_t)length : size - 1;
}
