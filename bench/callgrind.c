/*
 * What bench/instructions.py loads into the Python that it has valgrind run: when to count, and a clock
 * that stands still, for under valgrind a packet takes so long that the core would end each of its
 * turns after a few.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#error "missing Debian package: valgrind"
#endif

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int clock_gettime(clockid_t clock, struct timespec *time);
EXPORTED void count_from_here(void);
EXPORTED void count_to_here(const char *name);

int clock_gettime(clockid_t clock, struct timespec *time)
{
	if (clock != CLOCK_MONOTONIC)
		return (int)syscall(SYS_clock_gettime, clock, time);
	*time = (struct timespec){ .tv_sec = 1000 };
	return 0;
}

void count_from_here(void)
{
	CALLGRIND_START_INSTRUMENTATION;
	CALLGRIND_ZERO_STATS;
}

/* What was counted goes to a file that has this name in it. */
void count_to_here(const char *name)
{
	CALLGRIND_DUMP_STATS_AT(name);
	CALLGRIND_STOP_INSTRUMENTATION;
}
