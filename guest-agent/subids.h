/* Users of the job's own: a user namespace with more than one id, for builds of containers. */
#ifndef CT_SUBIDS_H
#define CT_SUBIDS_H

#include "volume.h"

/*
 * Makes a user namespace in which 0 is the job's user and 1 and on are CT_SUBORDINATE_IDS ids that nobody else in the VM has,
 * and leaves it at CT_SUBORDINATE_USERS_PATH. A process of the job's user may enter it (setns(2), user_namespaces(7)): that
 * user is its owner. It gains nothing outside: no id of the system, no capability, no program with set-uid bits. Ends the VM
 * if it cannot be done. Legal once, when /proc and /run are in place.
 */
void subids_prepare(const struct job_user *user);

#endif
