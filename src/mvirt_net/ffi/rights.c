/*
 * Giving up rights. What to give up, and when, is decided in Python (rights.py, sandbox.py); here
 * are the system calls alone. Landlock's structures are written out, because the kernel headers on
 * a build machine may be older than the kernel that the program runs on: the kernel takes a
 * structure that is longer than its own as long as the rest is zero.
 */
#include "core.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/capability.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The same numbers on all architectures. */
enum {
	LANDLOCK_CREATE_RULESET = 444,
	LANDLOCK_ADD_RULE = 445,
	LANDLOCK_RESTRICT_SELF = 446,
};

enum { CREATE_RULESET_VERSION = 1, RULE_PATH_BENEATH = 1 };

struct ruleset_attr {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;	/* since version 4 */
	uint64_t scoped;		/* since version 6 */
};

struct path_beneath_attr {
	uint64_t allowed_access;
	int32_t parent_fd;
} __attribute__((packed));

static int result_of(long returned)
{
	return returned < 0 ? -errno : (int)returned;
}

int mv_landlock_abi(void)
{
	return result_of(syscall(LANDLOCK_CREATE_RULESET, NULL, 0, CREATE_RULESET_VERSION));
}

int mv_landlock_create(uint64_t fs, uint64_t net, uint64_t scoped)
{
	const struct ruleset_attr attr = {
		.handled_access_fs = fs,
		.handled_access_net = net,
		.scoped = scoped,
	};

	return result_of(syscall(LANDLOCK_CREATE_RULESET, &attr, sizeof(attr), 0));
}

int mv_landlock_allow(int ruleset_fd, uint64_t fs, int parent_fd)
{
	const struct path_beneath_attr attr = { .allowed_access = fs, .parent_fd = parent_fd };

	return result_of(syscall(LANDLOCK_ADD_RULE, ruleset_fd, RULE_PATH_BENEATH, &attr, 0));
}

void mv_landlock_preload(void)
{
	/* It stays loaded. A C library that has no need of it does not have it either. */
	(void)dlopen("libgcc_s.so.1", RTLD_NOW);
}

int mv_landlock_enforce(int ruleset_fd)
{
	return result_of(syscall(LANDLOCK_RESTRICT_SELF, ruleset_fd, 0));
}

int mv_rights_freeze(void)
{
	return result_of(prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL));
}

int mv_rights_clear_bounding_set(void)
{
	/* One after another, up to the last that the kernel knows. */
	for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0UL, 0UL, 0UL) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0UL, 0UL, 0UL) < 0)
			return errno == EPERM ? 0 : -errno;
	return 0;
}

int mv_rights_clear_capabilities(void)
{
	static const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct held[_LINUX_CAPABILITY_U32S_3];
	int result = result_of(syscall(SYS_capget, &header, held));

	/* Where nothing is held, as under a service manager, to change it may be forbidden. */
	for (size_t i = 0; result == 0 && i < _LINUX_CAPABILITY_U32S_3; i++)
		if (held[i].permitted || held[i].inheritable)
			return result_of(syscall(SYS_capset, &header, none));
	return result;
}

int mv_rights_deny_inspection(void)
{
	return result_of(prctl(PR_SET_DUMPABLE, 0UL, 0UL, 0UL, 0UL));
}
