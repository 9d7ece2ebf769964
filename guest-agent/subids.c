/* See subids.h. */
#include "subids.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "console.h"
#include "files.h"
#include "protocol.h"

/* Owns the namespace, and has no more to do than to exist until somebody else holds it. */
static _Noreturn void own_namespace(const struct job_user *user, int told)
{
	char byte = 0;
	if (setgroups(0, NULL) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
	    setresuid(user->uid, user->uid, user->uid) < 0 || unshare(CLONE_NEWUSER) < 0)
		byte = (char)errno;
	if (write(told, &byte, 1) != 1 || byte != 0)
		_exit(1);
	for (;;)
		pause();
}

/*
 * One id is the user's own. The others are above all that a Debian system gives to users and services, and below those of
 * our helpers.
 */
static void map_ids(pid_t owner, const char *file, unsigned id)
{
	char path[64], text[96];
	snprintf(path, sizeof path, "/proc/%d/%s", owner, file);
	snprintf(text, sizeof text, "0 %u 1\n1 %u %u\n", id, CT_FIRST_SUBORDINATE_ID, CT_SUBORDINATE_IDS);
	if (file_write_at(AT_FDCWD, path, text) < 0)
		fatal("cannot write %s: %s", path, strerror(errno));
}

void subids_prepare(const struct job_user *user)
{
	int told[2];
	if (pipe2(told, O_CLOEXEC) < 0)
		fatal("pipe: %s", strerror(errno));
	pid_t owner = fork();
	if (owner < 0)
		fatal("fork: %s", strerror(errno));
	if (owner == 0)
		own_namespace(user, told[1]);
	close(told[1]);
	char byte = 0;
	if (read(told[0], &byte, 1) != 1 || byte != 0)
		fatal("cannot make a user namespace for the job: %s", strerror(byte));
	close(told[0]);
	map_ids(owner, "uid_map", user->uid);
	map_ids(owner, "gid_map", user->gid);

	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/user", owner);
	int file = open(CT_SUBORDINATE_USERS_PATH, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (file < 0 || mount(path, CT_SUBORDINATE_USERS_PATH, NULL, MS_BIND, NULL) < 0)
		fatal("cannot keep the user namespace of the job: %s", strerror(errno));
	close(file);
	if (kill(owner, SIGKILL) < 0 || waitpid(owner, NULL, 0) != owner)
		fatal("cannot end the owner of the user namespace: %s", strerror(errno));
}
