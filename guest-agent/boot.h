/* From the initramfs to a root file system that a job can run in. */
#ifndef CT_BOOT_H
#define CT_BOOT_H

#include "volume.h"

struct boot_result {
	int control_fd;	       /* The port to the host. */
	int egress_pidfd;      /* The helpers, which must live as long as the VM. */
	int audit_pidfd;
	int cgroup_fd;	       /* Directory of the job's cgroup; no path leads to it. */
	int script_fd;	       /* CT_SCRIPT_DIRECTORY. */
	int secret_fd;	       /* CT_SECRET_DIRECTORY. */
	struct job_user user;
};

/* Does all of it; ends the VM with a message on the console when something is missing. Legal once, as PID 1. */
void boot(struct boot_result *result);

#endif
