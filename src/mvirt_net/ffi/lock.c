/*
 * Locks of rings. A thread that polls a busy ring holds its lock, and that of the receiver, nearly
 * all the time, and lets go of it for less than a microsecond. Who sleeps until it is free comes
 * too late for that, again and again: with a plain (adaptive) mutex control waited for up to a second.
 * So everybody takes a ticket, and tickets are served in their order (it is what is called a ticket
 * lock); who has had the lock and wants it again is behind all who have waited. The longest wait is a
 * turn of each thread that is in front, and as long as the scheduler takes on a machine with more to
 * do than processors.
 *
 * Who has the lock is asked for it by who waits (mv_lock_is_wanted), so it pays to try for a while before
 * sleeping. Each sleeper has a bit of its ticket's, so that only the one whose turn it is wakes up.
 *
 * Barriers, by letter:
 *   U  release at the end, acquire at the beginning: one holder after the other.
 *   V  sequentially consistent: who unlocks serves the next ticket, then looks for sleepers; who goes to
 *      sleep says so, then looks whether it is served. The kernel does not let it sleep if it is by then.
 *      So either it sees that, or it is woken. Nobody frees a lock meanwhile: see worker.c.
 */
#include "core.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TRIES = 200 };	/* some microseconds */

static long futex(struct mv_lock *lock, int operation, uint32_t value, uint32_t ticket)
{
	return syscall(SYS_futex, &lock->serving, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL,
		       1U << ticket % 32);
}

void mv_lock_wait(struct mv_lock *lock, uint32_t ticket)
{
	uint32_t serving;

	for (unsigned int i = 0; i < TRIES; i++) {
		mv_relax();
		if (__atomic_load_n(&lock->serving, __ATOMIC_ACQUIRE) == ticket) /* U */
			return;
	}
	__atomic_fetch_add(&lock->sleepers, 1, __ATOMIC_SEQ_CST); /* V */
	while ((serving = __atomic_load_n(&lock->serving, __ATOMIC_SEQ_CST)) != ticket) /* U, V */
		(void)futex(lock, FUTEX_WAIT_BITSET, serving, ticket);
	__atomic_fetch_sub(&lock->sleepers, 1, __ATOMIC_RELAXED);
}

void mv_lock_wake(struct mv_lock *lock, uint32_t ticket)
{
	(void)futex(lock, FUTEX_WAKE_BITSET, INT_MAX, ticket);
}
