/* The BPF programs that record a job: see tracing.h. */
#include "tracing.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "code.h"
#include "console.h"
#include "programs.h"

/* The object file that bpf/Makefile makes. */
INCLUDE_OBJECT(audit_object, AUDIT_OBJECT);

/* The LRU map of files that were told, what is said about code, and the programs. */
#define OTHER_BYTES (2 * 1024 * 1024)
#define DOORBELL_BYTES 4096

static const struct audit_ring *rings;
static const struct audit_tally *tally;
static int flush_fd = -1;
static struct code_settings *code;
static int code_fd;

static unsigned cpus(void)
{
	int count = libbpf_num_possible_cpus();
	if (count < 1 || count > AUDIT_MAX_CPUS)
		fatal("cannot trace a machine of %d CPUs", count);
	return (unsigned)count;
}

uint64_t tracing_memory_bytes(void)
{
	return cpus() * sizeof(struct audit_ring) + AUDIT_EVENTS_BYTES + CODE_LABEL_BUCKETS_BYTES + OTHER_BYTES;
}

static void *map_pages(int fd, size_t bytes, int protection, size_t offset)
{
	void *pages = mmap(NULL, bytes, protection, MAP_SHARED, fd, (off_t)offset);
	if (pages == MAP_FAILED)
		fatal("cannot map what the BPF programs record: %s", strerror(errno));
	return pages;
}

static void map_queue(int fd, size_t bytes, struct audit_queue *queue)
{
	size_t page = (size_t)getpagesize();
	queue->bytes = bytes;
	queue->consumer = map_pages(fd, page, PROT_READ | PROT_WRITE, 0);
	queue->producer = map_pages(fd, page + 2 * bytes, PROT_READ, page);
	queue->data = (const uint8_t *)queue->producer + page;
}

/* Programs still write what is frozen; user space does not. */
static const void *map_frozen(int fd, size_t bytes)
{
	const void *pages = map_pages(fd, bytes, PROT_READ, 0);
	if (bpf_map_freeze(fd) < 0)
		fatal("cannot freeze the BPF maps: %s", strerror(errno));
	return pages;
}

static void set_constants(struct bpf_object *object, uint64_t job_cgroup, uint64_t root_device)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata.constants");
	const struct audit_constants constants = {
		.job_cgroup = job_cgroup,
		/* As the kernel has it (include/linux/kdev_t.h). */
		.root_device = major(root_device) << 20 | minor(root_device),
	};
	if (!map || bpf_map__set_initial_value(map, &constants, sizeof constants) < 0)
		fatal("the BPF object has no constants");
}

static void attach(struct bpf_program *program, int cgroup_root_fd)
{
	struct bpf_link *link = bpf_program__type(program) == BPF_PROG_TYPE_CGROUP_SYSCTL
					? bpf_program__attach_cgroup(program, cgroup_root_fd)
					: bpf_program__attach(program);
	if (!link)
		fatal("cannot attach the BPF program %s: %s", bpf_program__name(program), strerror(errno));
}

/* By PID 1, which could do both a moment ago. */
static void check_guards(int map_fd, int switch_fd)
{
	const uint32_t first = 0;
	static struct audit_reader value;
	if (bpf_map_lookup_elem(map_fd, &first, &value) == 0 || errno != EPERM)
		fatal("bpf(2) is not guarded");
	if (write(switch_fd, "0", 1) >= 0 || errno != EPERM)
		fatal("kernel.ftrace_enabled is not guarded");
}

void tracing_start(int job_fd, int root_fd, uint64_t root_device, int switch_fd, struct audit_options *helper)
{
	struct stat job;
	struct bpf_program *program;
	struct bpf_object *object = programs_open("audit", audit_object_begin, audit_object_end);
	if (fstat(job_fd, &job) < 0)
		fatal("cannot look at the job's cgroup: %s", strerror(errno));
	helper->cpus = cpus();
	if (bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "rings"), helper->cpus) < 0)
		fatal("cannot set the number of rings");
	set_constants(object, job.st_ino, root_device);
	programs_load(object);

	helper->rings = map_frozen(programs_map(object, "rings"), helper->cpus * sizeof(struct audit_ring));
	helper->tally = map_frozen(programs_map(object, "tally"), (size_t)getpagesize());
	helper->reader = map_pages(programs_map(object, "reader"), sizeof(struct audit_reader), PROT_READ | PROT_WRITE, 0);
	map_queue(programs_map(object, "events"), AUDIT_EVENTS_BYTES, &helper->events);
	helper->doorbell_fd = programs_map(object, "doorbell");
	map_queue(helper->doorbell_fd, DOORBELL_BYTES, &helper->doorbell);
	helper->flush_fd = flush_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (flush_fd < 0)
		fatal("cannot make an eventfd: %s", strerror(errno));
	code_fd = programs_map(object, "code");
	static const char *const programs_own[] = { "told", "labels", "interpreting" };
	for (size_t index = 0; index < sizeof programs_own / sizeof programs_own[0]; index++)
		if (bpf_map_freeze(programs_map(object, programs_own[index])) < 0)
			fatal("cannot freeze the BPF maps: %s", strerror(errno));

	struct bpf_program *guard = programs_find(object, "audit_bpf");
	bpf_object__for_each_program(program, object) if (program != guard) attach(program, root_fd);
	attach(guard, root_fd);
	check_guards(programs_map(object, "reader"), switch_fd);
	/* `object` and the links live as long as PID 1. What the loading needed beside them goes back. */
	malloc_trim(0);
}

static void unmap_queue(const struct audit_queue *queue)
{
	size_t page = (size_t)getpagesize();
	munmap((void *)queue->consumer, page);
	munmap((void *)queue->producer, page + 2 * queue->bytes);
}

void tracing_forget(const struct audit_options *helper)
{
	rings = helper->rings;
	tally = helper->tally;
	munmap(helper->reader, sizeof(struct audit_reader));
	unmap_queue(&helper->events);
	unmap_queue(&helper->doorbell);
	size_t page = (size_t)getpagesize(), bytes = (sizeof *code + page - 1) / page * page;
	code = map_pages(code_fd, bytes, PROT_READ | PROT_WRITE, 0);
	if (madvise(code, bytes, MADV_DONTFORK) < 0)
		fatal("cannot keep what is said about code: %s", strerror(errno));
}

struct code_settings *tracing_code(void)
{
	return code;
}

void tracing_position(char *text, size_t size)
{
	const uint64_t once = 1;
	/* Full: it has been told already. */
	if (write(flush_fd, &once, sizeof once) < 0 && errno != EAGAIN)
		fatal("cannot wake the audit helper: %s", strerror(errno));
	size_t length = (size_t)snprintf(text, size, "processes=%llu\n", (unsigned long long)tally->made);
	for (unsigned cpu = 0, count = cpus(); cpu < count && length < size; cpu++)
		length += (size_t)snprintf(text + length, size - length, "cpu=%llu\n", (unsigned long long)rings[cpu].head);
}
