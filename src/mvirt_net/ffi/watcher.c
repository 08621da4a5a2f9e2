/*
 * A thread that waits for the kicks of COLD TX rings.
 *
 * Theory of operation. A packet that comes alone waits for whoever is to wake up for it, and a task of
 * the event loop needs several times as long for that as a thread that sleeps in the kernel. So while a
 * task has nothing to do but wait for a kick, the watcher waits in its place, drains the ring and asks for
 * the next kick. Whatever is not as simple as that it gives back: work for services or for other tasks, a
 * ring with more in it than one drain takes, a ring that is down. One that is kicked so quickly that it
 * is for a poller it offers, and goes on with it until the task comes, which may take a while.
 *
 * The watcher sleeps in poll() until its epoll descriptor has an event, and fetches that under its lock,
 * one drain a turn, with control getting the lock in between. So whoever has the lock knows that no event
 * is on its way: one that was fetched is dealt with, and those of a descriptor that is taken out are gone.
 *
 * Where the processor belongs to a poller that spins, the kernel may take milliseconds until the
 * watcher gets it. So a poller attends to kicks, too, between its turns (mv_watcher_help()), and an event
 * is for whoever comes first: the watcher holds none while it waits for the lock, or for the processor.
 * (A guest that sends 1,000 frames/s beside others that flood, all threads on one processor: the 99th
 * percentile was 1.4 to 2.4 ms without that.)
 *
 * Kicks are edges: each write to an eventfd is one event, whether or not its count was taken before.
 * So the count is left to whoever takes the ring back, and reading it, which can be made slow by who
 * waits for the eventfd besides (debt.c), is not done under the lock.
 *
 * The event loop has to do with many rings at once, and each lock that it takes may keep it waiting for
 * a drain. So it learns of all that were given back or offered at once, and takes each of those that
 * were given back without.
 *
 * Barriers, by letter:
 *   J  release of `given_back`, after all that was done to the ring here: with the acquire of who ends
 *      the watch.
 */
#include "core.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* What a drain has left to do. */
struct left {
	struct mv_drained drained;
	uint8_t buffer[MV_PUNT_BYTES];
};

struct mv_watch {
	mv_watcher *watcher;
	mv_port *port;
	unsigned int pair;
	int64_t key;
	uint64_t clock;			/* what our clock lacks to the caller's */
	/* Under the watcher's lock. */
	int kick_fd;			/* -1: it is not watched */
	unsigned int burst;
	uint64_t quick_ns;
	unsigned int kicks;		/* of the present burst ... */
	uint64_t burst_began;		/* ... and its first */
	_Atomic bool given_back;	/* what follows is for mv_watch_end() */
	int next;
	bool quick;			/* it was offered */
	struct left *left;		/* NULL: nothing is left; the caller's after mv_watch_end() */
	bool listed;
	mv_watch *next_in_list;		/* of those for the caller */
};

struct mv_watcher {
	struct mv_control control;	/* of what follows, but for what never changes */
	int event_fd;
	int epoll_fd;
	int wake_fd;			/* readable once it is stopping */
	bool stopping;
	unsigned int users;		/* its owner and its watches; control's alone */
	struct left *spare;		/* for the next drain; NULL: it is made then */
	mv_watch *returned;		/* the first given back or offered comes first ... */
	mv_watch **end;			/* ... and here goes the next */
	mv_worker *worker;
};

static void add_one(int fd)
{
	static const uint64_t one = 1;
	ssize_t written = write(fd, &one, sizeof(one));

	/* A full counter is as good as one more. */
	(void)written;
}

static void put(mv_watcher *watcher)
{
	if (--watcher->users > 0)
		return;
	mv_worker_free(watcher->worker);
	free(watcher->spare);
	if (watcher->wake_fd >= 0)
		close(watcher->wake_fd);
	if (watcher->epoll_fd >= 0)
		close(watcher->epoll_fd);
	mv_control_destroy(&watcher->control);
	free(watcher);
}

mv_watcher *mv_watcher_new(int event_fd)
{
	mv_watcher *watcher = calloc(1, sizeof(*watcher));
	int error;

	if (!watcher)
		return NULL;
	mv_control_init(&watcher->control);
	watcher->users = 1;
	watcher->end = &watcher->returned;
	watcher->event_fd = event_fd;
	watcher->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	watcher->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	watcher->worker = mv_worker_new();
	if (watcher->epoll_fd >= 0 && watcher->wake_fd >= 0 && watcher->worker)
		return watcher;
	error = errno;
	put(watcher);
	errno = error;
	return NULL;
}

void mv_watcher_free(mv_watcher *watcher)
{
	if (watcher)
		put(watcher);
}

/* ---- under the watcher's lock ---- */

static void forget_fd(mv_watch *watch)
{
	/* It cannot fail: whoever closes the descriptor calls mv_watch_end() first. */
	(void)epoll_ctl(watch->watcher->epoll_fd, EPOLL_CTL_DEL, watch->kick_fd, NULL);
	watch->kick_fd = -1;
}

/* The caller is to hear of it. */
static void list(mv_watch *watch)
{
	mv_watcher *watcher = watch->watcher;

	if (watch->listed)
		return;
	if (!watcher->returned)
		add_one(watcher->event_fd);
	watch->listed = true;
	watch->next_in_list = NULL;
	*watcher->end = watch;
	watcher->end = &watch->next_in_list;
}

static void give_back(mv_watch *watch, int next)
{
	forget_fd(watch);
	watch->next = next;
	atomic_store_explicit(&watch->given_back, true, memory_order_release); /* J */
	list(watch);
}

/* The caller may have it; until it comes for it everything goes on. Once is enough. */
static void offer(mv_watch *watch)
{
	if (watch->quick)
		return;
	watch->quick = true;
	list(watch);
}

static void take_from_list(mv_watch *watch)
{
	mv_watcher *watcher = watch->watcher;
	mv_watch **link = &watcher->returned;

	if (!watch->listed)
		return;
	while (*link != watch)
		link = &(*link)->next_in_list;
	*link = watch->next_in_list;
	if (!*link)
		watcher->end = link;
	watch->listed = false;
}

/*
 * Whether this kick is the last of a burst that is as quick as the caller wants to know. One that brought
 * no frames is not of it: a guest could have a poller by writing to its eventfd alone.
 */
static bool is_quick(mv_watch *watch, bool brought_frames, uint64_t now)
{
	bool quick;

	if (!brought_frames)
		return false;
	if (watch->kicks++ == 0)
		watch->burst_began = now;
	if (watch->kicks < watch->burst)
		return false;
	quick = now - watch->burst_began < watch->quick_ns;
	watch->kicks = 0;
	return quick;
}

/* A driver has kicked; the worker is that of the thread that has noticed. */
static void attend(mv_watch *watch, mv_worker *worker)
{
	mv_watcher *watcher = watch->watcher;
	struct left *spare;
	uint64_t now = mv_now_ns(), before;
	int next;

	if (watcher->stopping)
		return;
	if (!watcher->spare)
		watcher->spare = malloc(sizeof(*watcher->spare));
	spare = watcher->spare;
	if (!spare) {
		give_back(watch, MV_NEXT_CALL_AGAIN);
		return;
	}
	before = mv_port_tx_frames(watch->port, watch->pair);
	next = mv_port_drain(worker, watch->port, watch->pair, watch->clock + now, spare->buffer,
			     &spare->drained);
	if (is_quick(watch, mv_port_tx_frames(watch->port, watch->pair) != before, now))
		offer(watch);
	if (mv_drained_leaves(&spare->drained)) {
		watch->left = spare;
		watcher->spare = NULL;
	} else if (next == MV_NEXT_KICK) {
		return;
	}
	give_back(watch, next);
}

/* Deal with one event. Whether there was one. */
static bool attend_next(mv_watcher *watcher, mv_worker *worker)
{
	struct epoll_event event;
	bool found = epoll_wait(watcher->epoll_fd, &event, 1, 0) > 0;

	if (found)
		attend(event.data.ptr, worker);
	return found;
}

/* ---- the thread ---- */

/* Whether to go on. */
static bool take_turn(mv_watcher *watcher)
{
	bool stopping;

	mv_control_begin_turn(&watcher->control);
	stopping = watcher->stopping;
	if (!stopping)
		attend_next(watcher, watcher->worker);
	mv_control_end_turn(&watcher->control);
	return !stopping;
}

void mv_watcher_run(mv_watcher *watcher)
{
	struct pollfd events[] = {
		{ .fd = watcher->epoll_fd, .events = POLLIN },
		{ .fd = watcher->wake_fd, .events = POLLIN },
	};
	sigset_t before;

	mv_block_signals(&before);
	while (take_turn(watcher)) {
		/* Whatever it returns: the next turn finds out, and one in vain is harmless. */
		(void)poll(events, 2, -1);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- other threads ---- */

bool mv_watcher_help(mv_watcher *watcher, mv_worker *worker)
{
	bool found;

	if (!mv_control_try_turn(&watcher->control))
		return false;
	found = attend_next(watcher, worker);
	mv_control_end_turn(&watcher->control);
	return found;
}

/* ---- control ---- */

void mv_watcher_stop(mv_watcher *watcher)
{
	mv_control_begin(&watcher->control);
	watcher->stopping = true;
	mv_control_end(&watcher->control);
	add_one(watcher->wake_fd);
}

unsigned int mv_watcher_returned(mv_watcher *watcher, int64_t *keys, unsigned int most)
{
	unsigned int n = 0;
	mv_watch *watch;

	mv_control_begin(&watcher->control);
	for (; n < most && (watch = watcher->returned); n++) {
		take_from_list(watch);
		keys[n] = watch->key;
	}
	mv_control_end(&watcher->control);
	return n;
}

mv_watch *mv_watch_new(mv_watcher *watcher, mv_port *port, unsigned int pair, int64_t key, uint64_t now)
{
	mv_watch *watch = calloc(1, sizeof(*watch));

	if (!watch)
		return NULL;
	watch->watcher = watcher;
	watch->port = port;
	watch->pair = pair;
	watch->key = key;
	watch->clock = now - mv_now_ns();
	watch->kick_fd = -1;
	watcher->users++;
	return watch;
}

static int begin(mv_watch *watch, int kick_fd, unsigned int burst, uint64_t quick_ns)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.ptr = watch };
	mv_watcher *watcher = watch->watcher;

	/* It is large, so that the allocator might ask the kernel each time. */
	if (watcher->spare)
		free(watch->left);
	else
		watcher->spare = watch->left;
	watch->left = NULL;
	atomic_store_explicit(&watch->given_back, false, memory_order_relaxed);
	watch->next = MV_NEXT_KICK;
	/* A burst goes on where one was looked for; after an offer it is another one. */
	if (watch->quick)
		watch->kicks = 0;
	watch->quick = false;
	watch->burst = burst;
	watch->quick_ns = quick_ns;
	if (watcher->stopping)
		return -ECANCELED;
	if (epoll_ctl(watcher->epoll_fd, EPOLL_CTL_ADD, kick_fd, &event) < 0)
		return -errno;
	watch->kick_fd = kick_fd;
	return 0;
}

int mv_watch_begin(mv_watch *watch, int kick_fd, unsigned int burst, uint64_t quick_ns)
{
	mv_watcher *watcher = watch->watcher;
	int r;

	mv_control_begin(&watcher->control);
	r = watch->kick_fd >= 0 ? -EBUSY : begin(watch, kick_fd, burst, quick_ns);
	mv_control_end(&watcher->control);
	return r;
}

/* Whether the ring was given back: then nobody here has to do with it, nor the lock. */
static bool is_given_back(const mv_watch *watch)
{
	return atomic_load_explicit(&watch->given_back, memory_order_acquire); /* J */
}

static void stop_watching(mv_watch *watch)
{
	mv_control_begin(&watch->watcher->control);
	if (watch->kick_fd >= 0)
		forget_fd(watch);
	mv_control_end(&watch->watcher->control);
}

void mv_watch_end(mv_watch *watch, struct mv_watched *watched)
{
	if (!is_given_back(watch))
		stop_watching(watch);
	*watched = (struct mv_watched){
		.given_back = is_given_back(watch),
		.next = watch->next,
		.quick = watch->quick,
	};
	if (watch->left) {
		watched->drained = &watch->left->drained;
		watched->buffer = watch->left->buffer;
	}
}

void mv_watch_free(mv_watch *watch)
{
	mv_watcher *watcher;

	if (!watch)
		return;
	watcher = watch->watcher;
	mv_control_begin(&watcher->control);
	if (watch->kick_fd >= 0)
		forget_fd(watch);
	take_from_list(watch);
	mv_control_end(&watcher->control);
	free(watch->left);
	free(watch);
	put(watcher);
}
