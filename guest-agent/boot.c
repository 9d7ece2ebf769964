/*
 * Boot, as PID 1 in the initramfs: pseudo file systems, kernel modules, the two devices, dm-verity, and a new root in
 * which the job sees neither block devices nor the port nor cgroups. Whatever goes wrong here ends the VM with one
 * line on the console: a guest without its parts must not become ready.
 */
#include "boot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "code.h"
#include "console.h"
#include "dm.h"
#include "egress.h"
#include "files.h"
#include "helper.h"
#include "identity.h"
#include "network.h"
#include "protocol.h"
#include "steering.h"
#include "subids.h"
#include "tracing.h"

#define ROOT "/newroot"
/* Devices have been probed long before this on any machine; a boot as a whole has two seconds. */
#define DEVICE_DEADLINE_US 10000000
#define VERITY_MAPPING "ct-root"
/* What the volume is prepared for unless ct.volume= names another cipher. */
#define DEFAULT_VOLUME_CIPHER "64:aes-xts-plain64"
/* What egress.c and the kernel hold for it at the very worst: windows and socket buffers of all its connections. */
#define EGRESS_MEMORY_BYTES (384ULL << 20)
/* Descriptors of the egress helper beside its connections. */
#define EGRESS_OTHER_FILES 64
/* The audit helper has one buffer, and the port holds some. */
#define AUDIT_MEMORY_BYTES (32ULL << 20)
#define AUDIT_FILES 16

static void must(int result, const char *what)
{
	if (result < 0)
		fatal("%s: %s", what, strerror(errno));
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags,
		       const char *data)
{
	if (mount(source, target, type, flags, data) < 0)
		fatal("cannot mount %s on %s: %s", source, target, strerror(errno));
}

static void must_mkdir(const char *path, mode_t mode)
{
	if (mkdir(path, mode) < 0 && errno != EEXIST)
		fatal("cannot make the directory %s: %s", path, strerror(errno));
}

static void mount_initial(void)
{
	must_mkdir("/proc", 0755);
	must_mkdir("/sys", 0755);
	must_mkdir("/dev", 0755);
	int result = mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
	console_open();
	must(result, "cannot mount devtmpfs");
	must_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	must_mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);

	/* The kernel opened no console for us: whatever a library prints must not end up in a descriptor of ours. */
	int null = open("/dev/null", O_RDWR);
	must(null, "cannot open /dev/null");
	for (int fd = 0; fd <= 2; fd++)
		if (null != fd)
			must(dup2(null, fd), "cannot set up the standard descriptors");
	if (null > 2)
		close(null);
}

static int by_name(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

/* The files' names begin with numbers in load order; the image builder has resolved the dependencies. */
static void load_modules(void)
{
	char *names[256];
	size_t count = 0;
	DIR *directory = opendir("/modules");
	if (!directory)
		fatal("cannot open /modules: %s", strerror(errno));
	for (struct dirent *entry; (entry = readdir(directory));) {
		size_t length = strlen(entry->d_name);
		if (length < 3 || strcmp(entry->d_name + length - 3, ".ko") != 0)
			continue;
		if (count == sizeof names / sizeof names[0])
			fatal("more than %zu files in /modules", count);
		names[count] = strdup(entry->d_name);
		if (!names[count++])
			fatal("no memory");
	}
	qsort(names, count, sizeof names[0], by_name);
	for (size_t index = 0; index < count; index++) {
		int fd = openat(dirfd(directory), names[index], O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0) {
			/* ENODEV: code for hardware this machine has not (aesni_intel on an old CPU). EEXIST: built in. */
			if (errno != ENODEV && errno != EEXIST)
				fatal("cannot load /modules/%s: %s", names[index], strerror(errno));
		}
		if (fd >= 0)
			close(fd);
		free(names[index]);
	}
	closedir(directory);
}

/* Waits until `present` says yes, woken by the kernel's device events. */
static void wait_for(int events_fd, int (*present)(void), const char *what)
{
	uint64_t deadline = now_us() + DEVICE_DEADLINE_US;
	while (!present()) {
		uint64_t now = now_us();
		if (now >= deadline)
			fatal("%s did not appear within %d s", what, DEVICE_DEADLINE_US / 1000000);
		/* At most half a second: an event lost to a full socket must not cost the whole deadline. */
		struct pollfd entry = { .fd = events_fd, .events = POLLIN };
		if (poll(&entry, 1, 500) > 0) {
			char event[2048];
			while (recv(events_fd, event, sizeof event, MSG_DONTWAIT) > 0)
				;
		}
	}
}

static int root_device_present(void)
{
	return access("/dev/vda", F_OK) == 0;
}

static struct {
	const char *name;
	char path[64];
} ports[] = { { .name = CT_CONTROL_PORT_NAME }, { .name = CT_EGRESS_PORT_NAME },
	    { .name = CT_AUDIT_PORT_NAME } };
#define PORT_COUNT (sizeof ports / sizeof ports[0])

static int ports_present(void)
{
	DIR *directory = opendir("/sys/class/virtio-ports");
	if (!directory)
		return 0;
	size_t found = 0;
	for (struct dirent *entry; (entry = readdir(directory));) {
		char path[300];
		char name[64];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/name", entry->d_name);
		if (file_read_at(dirfd(directory), path, name, sizeof name) < 0)
			continue;
		name[strcspn(name, "\n")] = '\0';
		for (size_t index = 0; index < PORT_COUNT; index++) {
			if (strcmp(name, ports[index].name) != 0)
				continue;
			snprintf(ports[index].path, sizeof ports[index].path, "/dev/%.32s", entry->d_name);
			found += access(ports[index].path, F_OK) == 0;
		}
	}
	closedir(directory);
	return found == PORT_COUNT;
}

static int open_port(size_t index)
{
	int fd = open(ports[index].path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		fatal("cannot open the port %s: %s", ports[index].name, strerror(errno));
	return fd;
}

/* A word `key=value` of the kernel command line. */
static bool find_on_command_line(const char *key, char *value, size_t size)
{
	char line[4096];
	if (file_read_at(AT_FDCWD, "/proc/cmdline", line, sizeof line) < 0)
		fatal("cannot read the kernel command line: %s", strerror(errno));
	size_t key_length = strlen(key);
	for (char *save, *word = strtok_r(line, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
		if (strncmp(word, key, key_length) == 0 && word[key_length] == '=') {
			snprintf(value, size, "%s", word + key_length + 1);
			return true;
		}
	}
	return false;
}

static void command_line_value(const char *key, char *value, size_t size)
{
	if (!find_on_command_line(key, value, size))
		fatal("the kernel command line has no %s=", key);
}

static bool is_helper(unsigned long id)
{
	return id == EGRESS_HELPER_ID || id == AUDIT_HELPER_ID;
}

static void parse_user(struct job_user *user)
{
	char value[320];
	char *end;
	command_line_value("ct.user", value, sizeof value);
	unsigned long uid = strtoul(value, &end, 10);
	unsigned long gid = *end == ':' ? strtoul(end + 1, &end, 10) : 0;
	if (*end != ':' || end[1] != '/' || is_helper(uid) || is_helper(gid) || uid > 0xfffffffe || gid > 0xfffffffe || strlen(end + 1) >= sizeof user->home)
		fatal("ct.user=%s is not <uid>:<gid>:<home>", value);
	user->uid = (uid_t)uid;
	user->gid = (gid_t)gid;
	snprintf(user->home, sizeof user->home, "%s", end + 1);
}

static void mount_root(void)
{
	char value[320];
	unsigned long long data_blocks, hash_start;
	char root_hash[65], salt[129], table[512];
	command_line_value("ct.verity", value, sizeof value);
	if (sscanf(value, "%llu,%llu,%64[0-9a-f],%128[0-9a-f-]", &data_blocks, &hash_start, root_hash, salt) != 4)
		fatal("ct.verity=%s is not <data blocks>,<hash start>,<root hash>,<salt>", value);
	/*
	 * A block that does not match its hash ends the VM: a job that went on with read errors would blame itself for
	 * what is a fault of the host.
	 */
	snprintf(table, sizeof table, "1 /dev/vda /dev/vda 4096 4096 %llu %llu sha256 %s %s 1 panic_on_corruption",
		 data_blocks, hash_start, root_hash, salt);
	unsigned minor_number;
	int result = dm_create(VERITY_MAPPING, &minor_number);
	if (result == 0)
		result = dm_load(VERITY_MAPPING, "verity", data_blocks * 8, table, true, false);
	if (result == 0)
		result = dm_resume(VERITY_MAPPING, true);
	if (result < 0)
		fatal("cannot set up dm-verity on /dev/vda: %s", strerror(-result));
	char device[32];
	snprintf(device, sizeof device, "/dev/dm-%u", minor_number);
	must_mkdir(ROOT, 0755);
	must_mount(device, ROOT, "erofs", MS_RDONLY | MS_NODEV | MS_NOSUID, NULL);
}

static void make_node(const char *path, mode_t mode, unsigned major_number, unsigned minor_number)
{
	/* The umask would take bits from mknod's mode. */
	if (mknod(path, S_IFCHR | mode, makedev(major_number, minor_number)) < 0 || chmod(path, mode) < 0)
		fatal("cannot make %s: %s", path, strerror(errno));
}

/* Only what every program may expect (Documentation/admin-guide/devices.txt has the numbers). */
static void mount_devices(void)
{
	must_mount("dev", ROOT "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k,nr_inodes=64");
	make_node(ROOT "/dev/null", 0666, 1, 3);
	make_node(ROOT "/dev/zero", 0666, 1, 5);
	make_node(ROOT "/dev/full", 0666, 1, 7);
	make_node(ROOT "/dev/random", 0666, 1, 8);
	make_node(ROOT "/dev/urandom", 0666, 1, 9);
	make_node(ROOT "/dev/tty", 0666, 5, 0);
	static const char *const links[][2] = {
		{ "pts/ptmx", ROOT "/dev/ptmx" },	    { "/proc/self/fd", ROOT "/dev/fd" },
		{ "/proc/self/fd/0", ROOT "/dev/stdin" },   { "/proc/self/fd/1", ROOT "/dev/stdout" },
		{ "/proc/self/fd/2", ROOT "/dev/stderr" },
	};
	for (size_t index = 0; index < sizeof links / sizeof links[0]; index++)
		must(symlink(links[index][0], links[index][1]), "cannot make a link in /dev");
	must_mkdir(ROOT "/dev/pts", 0755);
	must_mkdir(ROOT "/dev/shm", 01777);
	must_mount("devpts", ROOT "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
	must_mount("shm", ROOT "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=50%");
	must_mount(NULL, ROOT "/dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL);
}

static void copy_probe(void)
{
	char bytes[16384];
	int from = open("/probe", O_RDONLY | O_CLOEXEC);
	must(from, "cannot open /probe");
	ssize_t length = read(from, bytes, sizeof bytes);
	close(from);
	if (length <= 0 || length == (ssize_t)sizeof bytes)
		fatal("/probe is not a small program");
	int to = open(ROOT CT_PROBE_PATH, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0555);
	if (to < 0 || write(to, bytes, (size_t)length) != length || fchmod(to, 0555) < 0)
		fatal("cannot write " CT_PROBE_PATH ": %s", strerror(errno));
	close(to);
}

static void bind_file(const char *name, const char *target, const char *text)
{
	char path[128];
	snprintf(path, sizeof path, ROOT FILES_DIRECTORY "/%s", name);
	if (file_write(path, text, strlen(text)) < 0 || chmod(path, 0444) < 0)
		fatal("cannot write %s: %s", path, strerror(errno));
	if (mount(path, target, NULL, MS_BIND, NULL) < 0 ||
	    mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		fatal("cannot mount over %s: %s", target + strlen(ROOT), strerror(errno));
}

static void mount_run(const struct job_user *user)
{
	must_mount("run", ROOT "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=25%");
	must_mkdir(ROOT "/run/ct", 0755);
	must_mkdir(ROOT "/run/ct/bin", 0755);
	must_mkdir(ROOT "/run/ct/steps", 0755);
	must_mkdir(ROOT CT_SECRET_DIRECTORY, 0750);
	must(chown(ROOT CT_SECRET_DIRECTORY, 0, user->gid), CT_SECRET_DIRECTORY);
	must_mkdir(ROOT "/run/ct/etc", 0755);
	must_mkdir(ROOT "/run/ct/volume", 0700);
	must_mkdir(ROOT "/run/lock", 01777);
	must(chmod(ROOT "/run/lock", 01777), "/run/lock");
	/* Where XDG_RUNTIME_DIR points for a user who logged in. */
	char path[64];
	must_mkdir(ROOT "/run/user", 0755);
	snprintf(path, sizeof path, ROOT "/run/user/%u", user->uid);
	must_mkdir(path, 0700);
	must(chown(path, user->uid, user->gid), path);
	copy_probe();

	/* Identity adds to these (identity.c); the binds are made now because they need no identity. */
	bind_file("hostname", ROOT "/etc/hostname", "");
	bind_file("hosts", ROOT "/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n");
	bind_file("machine-id", ROOT "/etc/machine-id", "");
	/* Patient: an answer may have to wait until somebody at the other end is there to give it. */
	bind_file("resolv.conf", ROOT "/etc/resolv.conf",
		  "nameserver " RESOLVER_ADDRESS "\noptions timeout:10 attempts:2\n");
	bind_file("boot_id", ROOT "/proc/sys/kernel/random/boot_id", "");
}

static void set_kernel(const char *path, const char *value, bool required)
{
	if (file_write_at(AT_FDCWD, path, value) < 0 && required)
		fatal("cannot write %s: %s", path, strerror(errno));
}

/* Settings that a job could otherwise profit from, and the end of module loading. */
static void harden_kernel(void)
{
	/* Helpers would run as root from the job's image: there is nothing left to load. */
	set_kernel("/proc/sys/kernel/modprobe", "\n", true);
	set_kernel("/proc/sys/kernel/modules_disabled", "1", true);
	set_kernel("/proc/sys/kernel/core_pattern", "core", true);
	set_kernel("/proc/sys/kernel/kptr_restrict", "2", false);
	set_kernel("/proc/sys/kernel/dmesg_restrict", "1", false);
	set_kernel("/proc/sys/kernel/kexec_load_disabled", "1", false);
	set_kernel("/proc/sys/kernel/sysrq", "0", false);
	set_kernel("/proc/sys/kernel/unprivileged_bpf_disabled", "2", false);
	set_kernel("/proc/sys/vm/unprivileged_userfaultfd", "0", false);
	/*
	 * Whoever becomes root, the kernel's memory stays out of reach: Documentation/admin-guide/lockdown. Now, as the
	 * modules of the initramfs are not signed for this kernel.
	 */
	must_mount("securityfs", "/sys/kernel/security", "securityfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	set_kernel("/sys/kernel/security/lockdown", "integrity", true);
	must(umount2("/sys/kernel/security", MNT_DETACH), "securityfs");
}

static void mount_proc_and_sys(void)
{
	must_mount("/proc", ROOT "/proc", NULL, MS_MOVE, NULL);
	must_mount("/sys", ROOT "/sys", NULL, MS_MOVE, NULL);
	const unsigned long read_only = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
	must_mount(NULL, ROOT "/sys", NULL, read_only, NULL);
	static const char *const parts[] = { ROOT "/proc/sys", ROOT "/proc/sysrq-trigger", ROOT "/proc/irq",
					     ROOT "/proc/bus" };
	for (size_t index = 0; index < sizeof parts / sizeof parts[0]; index++) {
		if (mount(parts[index], parts[index], NULL, MS_BIND, NULL) < 0) {
			if (index == 0)
				fatal("cannot make /proc/sys read-only: %s", strerror(errno));
			continue; /* Not in this kernel. */
		}
		must_mount(NULL, parts[index], NULL, read_only, NULL);
	}
}

/* A mount that no path leads to: only this descriptor does. */
static int mount_detached(const char *type)
{
	int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
	if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		fatal("cannot make a %s: %s", type, strerror(errno));
	int fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
	must(fd, type);
	close(context);
	return fd;
}

static int make_cgroup(int root, const char *name)
{
	must(mkdirat(root, name, 0755), "cannot make a cgroup");
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(fd, "cannot open a cgroup");
	return fd;
}

static void write_limit(int directory, const char *name, unsigned long long value)
{
	char text[32];
	snprintf(text, sizeof text, "%llu", value);
	if (file_write_at(directory, name, text) < 0)
		fatal("cannot set a cgroup's %s: %s", name, strerror(errno));
}

struct cgroups {
	int root;
	int job;
	int egress;
	int audit;
};

/*
 * The job's cgroup, with limits that leave the guest agent room to act when a job takes all it can get, and one for each
 * helper. No path leads to them. `root` stays open: closing the last descriptor of a detached mount dissolves it.
 */
static void make_cgroups(struct cgroups *cgroups)
{
	int root = mount_detached("cgroup2");
	if (file_write_at(root, "cgroup.subtree_control", "+cpu +memory +pids") < 0)
		fatal("cannot enable the cgroup controllers: %s", strerror(errno));
	cgroups->root = root;
	cgroups->job = make_cgroup(root, "job");
	cgroups->egress = make_cgroup(root, "egress");
	cgroups->audit = make_cgroup(root, "audit");

	struct sysinfo memory;
	must(sysinfo(&memory), "sysinfo");
	unsigned long long total = (unsigned long long)memory.totalram * memory.mem_unit;
	/* The kernel's own pages for that many processes, the agent with full buffers (link.c), and the record's rings. */
	unsigned long long reserve = (24ULL << 20) + total / 32 + tracing_memory_bytes();
	if (total < 2 * reserve)
		fatal("%llu MiB of memory are too little", total >> 20);
	write_limit(cgroups->job, "memory.max", total - reserve);
	/* Threads count, too. Kernel memory counts as memory, so this only has to stop what is plainly a fork bomb. */
	unsigned long long processes = total / (256 << 10);
	write_limit(cgroups->job, "pids.max", processes > 4096 ? 4096 : processes);
	write_limit(cgroups->egress, "memory.max", EGRESS_MEMORY_BYTES);
	write_limit(cgroups->egress, "pids.max", 1);
	write_limit(cgroups->audit, "memory.max", AUDIT_MEMORY_BYTES);
	write_limit(cgroups->audit, "pids.max", 1);
}

/* Gives the initramfs's memory back; stays on its own file system. */
static void remove_below(int directory, dev_t device, int depth)
{
	DIR *stream = fdopendir(directory);
	if (!stream) {
		close(directory);
		return;
	}
	for (struct dirent *entry; (entry = readdir(stream));) {
		struct stat status;
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (fstatat(directory, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0 || status.st_dev != device)
			continue;
		if (!S_ISDIR(status.st_mode)) {
			unlinkat(directory, entry->d_name, 0);
		} else if (depth < 4) {
			int below = openat(directory, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (below >= 0)
				remove_below(below, device, depth + 1);
		}
	}
	closedir(stream);
}

static void switch_root(void)
{
	struct stat status;
	struct statfs filesystem;
	int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(old, "cannot open the initramfs");
	must(fstat(old, &status), "initramfs");
	must(fstatfs(old, &filesystem), "initramfs");
	must(chdir(ROOT), "cannot enter the new root");
	/* RAMFS_MAGIC or TMPFS_MAGIC (linux/magic.h): nothing else is ever emptied. */
	if (filesystem.f_type == (__fsword_t)0x858458f6 || filesystem.f_type == (__fsword_t)0x01021994)
		remove_below(old, status.st_dev, 0);
	else
		close(old);
	must_mount(".", "/", NULL, MS_MOVE, NULL);
	must(chroot("."), "cannot change the root");
	must(chdir("/"), "cannot enter the root");
}

/* What every process of the guest inherits from PID 1, set here once instead of at every exec. */
static void restrict_self(void)
{
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	/* Dropping the bounding set limits only what an exec can gain; PID 1 keeps what it has. */
	for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
		must(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "capability bounding set");
	/* A process that still shares our memory on its way to exec cannot be traced by the job. */
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable");
	struct rlimit none = { 0, 0 };
	must(setrlimit(RLIMIT_CORE, &none), "core limit");
	/* The kernel's default for processes depends on memory and counts all of a user's; pids.max is the limit. */
	struct rlimit processes = { RLIM_INFINITY, RLIM_INFINITY };
	must(setrlimit(RLIMIT_NPROC, &processes), "process limit");
	struct rlimit files = { 1024, 524288 };
	must(setrlimit(RLIMIT_NOFILE, &files), "file limit");
}

static int serve_egress(const void *options)
{
	return (int)egress_serve(options);
}

static int start_egress(int port_fd, int cgroup_fd, const struct network_sockets *sockets)
{
	steering_start(sockets->listeners);
	const struct egress_options options = {
		.port_fd = port_fd,
		.listener_fds = { sockets->listeners[0], sockets->listeners[1] },
		.resolver_fd = sockets->resolver,
		.attempts_fd = steering_attempts_fd(),
		.take_attempts = steering_take_attempts,
		.suppressed = steering_suppressed,
	};
	const int fds[] = { port_fd, sockets->listeners[0], sockets->listeners[1], sockets->resolver, options.attempts_fd };
	const struct helper helper = {
		.name = "ct-egress",
		.id = EGRESS_HELPER_ID,
		.files = EGRESS_MAX_CONNECTIONS + EGRESS_OTHER_FILES,
		.fds = fds,
		.fd_count = sizeof fds / sizeof fds[0],
		.calls = egress_calls,
		.call_count = egress_call_count,
		.serve = serve_egress,
		.options = &options,
	};
	int pidfd = helper_start(&helper, cgroup_fd);
	/* The ring stays: BPF's maps are PID 1's to keep. */
	for (size_t index = 0; index < 4; index++)
		close(fds[index]);
	return pidfd;
}

static int serve_audit(const void *options)
{
	return (int)audit_serve(options);
}

/* Before everything else that wants to run: while it waits, rings fill. */
#define AUDIT_PRIORITY 1

static int start_audit(int port_fd, const struct cgroups *cgroups, int switch_fd)
{
	struct stat root;
	struct audit_options options = {
		.port_fd = port_fd,
		.freeze_fd = openat(cgroups->job, "cgroup.freeze", O_WRONLY | O_CLOEXEC),
	};
	must(options.freeze_fd, "cannot open cgroup.freeze");
	must(stat("/", &root), "root");
	tracing_start(cgroups->job, cgroups->root, root.st_dev, switch_fd, &options);
	const int fds[] = { port_fd, options.doorbell_fd, options.freeze_fd, options.flush_fd };
	const struct helper helper = {
		.name = "ct-audit",
		.id = AUDIT_HELPER_ID,
		.files = AUDIT_FILES,
		.priority = AUDIT_PRIORITY,
		.fds = fds,
		.fd_count = sizeof fds / sizeof fds[0],
		.calls = audit_calls,
		.call_count = audit_call_count,
		.serve = serve_audit,
		.options = &options,
	};
	int pidfd = helper_start(&helper, cgroups->audit);
	tracing_forget(&options);
	close(port_fd);
	close(options.freeze_fd);
	close(switch_fd);
	return pidfd;
}

void boot(struct boot_result *result)
{
	umask(022);
	mount_initial();
	int events_fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	if (events_fd < 0 || bind(events_fd, (struct sockaddr *)&address, sizeof address) < 0)
		fatal("cannot listen for device events: %s", strerror(errno));
	char cipher[128];
	parse_user(&result->user);
	if (!find_on_command_line("ct.volume", cipher, sizeof cipher))
		snprintf(cipher, sizeof cipher, "%s", DEFAULT_VOLUME_CIPHER);
	load_modules();
	int status = dm_open();
	if (status < 0)
		fatal("cannot open the device mapper: %s", strerror(-status));
	wait_for(events_fd, root_device_present, "the root device /dev/vda");
	mount_root();
	wait_for(events_fd, ports_present, "a virtio-serial port, " CT_CONTROL_PORT_NAME ", " CT_EGRESS_PORT_NAME " or " CT_AUDIT_PORT_NAME ",");
	close(events_fd);
	result->control_fd = open_port(0);
	int egress_fd = open_port(1);
	int audit_fd = open_port(2);

	volume_prepare();
	struct network_sockets sockets;
	network_configure(&sockets);
	struct cgroups cgroups;
	make_cgroups(&cgroups);
	result->cgroup_fd = cgroups.job;
	harden_kernel();
	/* Before it can only be read. */
	int switch_fd = open("/proc/sys/kernel/ftrace_enabled", O_WRONLY | O_CLOEXEC);
	must(switch_fd, "cannot open ftrace_enabled");
	mount_proc_and_sys();
	mount_devices();
	mount_run(&result->user);
	switch_root();
	result->script_fd = open(CT_SCRIPT_DIRECTORY, O_PATH | O_DIRECTORY | O_CLOEXEC);
	must(result->script_fd, "cannot open " CT_SCRIPT_DIRECTORY);
	result->secret_fd = open(CT_SECRET_DIRECTORY, O_PATH | O_DIRECTORY | O_CLOEXEC);
	must(result->secret_fd, "cannot open " CT_SECRET_DIRECTORY);
	volume_mount_ahead(cipher, &result->user);
	char subids[8];
	if (find_on_command_line("ct.subids", subids, sizeof subids))
		subids_prepare(&result->user);
	identity_prepare();
	code_prepare();
	restrict_self();
	result->egress_pidfd = start_egress(egress_fd, cgroups.egress, &sockets);
	result->audit_pidfd = start_audit(audit_fd, &cgroups, switch_fd);
	close(cgroups.egress);
	close(cgroups.audit);
}
