/*
 * Threads that the caller gives to the core for good (poller.c, watcher.c), and how control gets at
 * what they work on.
 *
 * A mutex alone would not do: such a thread takes it again right after it has let it go, and whoever
 * sleeps in front of it would come too late each time. So control says that it waits, and the thread
 * waits for it between two turns.
 */
#include "core.h"

void mv_control_init(struct mv_control *control)
{
	pthread_mutex_init(&control->lock, NULL);
	pthread_cond_init(&control->changed, NULL);
	atomic_init(&control->wanted, 0);
}

void mv_control_destroy(struct mv_control *control)
{
	pthread_cond_destroy(&control->changed);
	pthread_mutex_destroy(&control->lock);
}

void mv_control_begin(struct mv_control *control)
{
	atomic_fetch_add(&control->wanted, 1);
	pthread_mutex_lock(&control->lock);
	atomic_fetch_sub(&control->wanted, 1);
}

void mv_control_end(struct mv_control *control)
{
	pthread_cond_signal(&control->changed);
	pthread_mutex_unlock(&control->lock);
}

void mv_control_begin_turn(struct mv_control *control)
{
	pthread_mutex_lock(&control->lock);
	while (mv_control_is_wanted(control))
		mv_control_wait(control);
}

bool mv_control_try_turn(struct mv_control *control)
{
	return !mv_control_is_wanted(control) && pthread_mutex_trylock(&control->lock) == 0;
}

void mv_control_end_turn(struct mv_control *control)
{
	pthread_mutex_unlock(&control->lock);
}

void mv_control_wait(struct mv_control *control)
{
	pthread_cond_wait(&control->changed, &control->lock);
}

void mv_block_signals(sigset_t *before)
{
	static const int faults[] = { SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP };
	sigset_t all;

	sigfillset(&all);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		sigdelset(&all, faults[i]);
	pthread_sigmask(SIG_SETMASK, &all, before);
}
