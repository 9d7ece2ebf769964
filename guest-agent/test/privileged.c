/*
 * Linked with `--wrap=prctl` into a guest agent for test/security/audit-root.test.ts: PID 1 keeps its capability bounding set, so
 * that what is run as root has all capabilities, and what guards the record can be tried without what usually keeps a job
 * from even getting there.
 */
#include <sys/prctl.h>
#include <unistd.h>

int __real_prctl(int option, unsigned long second, unsigned long third, unsigned long fourth, unsigned long fifth);

int __wrap_prctl(int option, unsigned long second, unsigned long third, unsigned long fourth, unsigned long fifth)
{
	if (getpid() == 1 && (option == PR_CAPBSET_DROP || option == PR_SET_NO_NEW_PRIVS))
		return 0;
	return __real_prctl(option, second, third, fourth, fifth);
}
