/*
 * Threads that poll TX rings which are too busy to wait for kicks.
 *
 * Theory of operation. A COLD ring belongs to a task, which drains it when its driver kicks. The task
 * hands it over to a poller when it is busy: it is HOT then. The poller looks at its rings in turn, for
 * one bounded drain each, so none gets more than its share, and no driver has to kick. A ring that has
 * nothing for a while is released, and its task takes over again.
 *
 * How long a while is depends on what the ring was worth so far. To get hot again takes many packets
 * that are slow, and a driver that sends steadily is away for longer than a poller's usual patience now
 * and then, for its processor has interrupts and other work. So as long as packets come, the ring earns
 * a share of the time, by which it may be empty for longer. What is spun away so is at most that share
 * of what was polled with success, and a millisecond at once. In a virtual machine whose clock ticks
 * take 30 us the 99th percentile of back-to-back pings fell from 17 to 2.8 us by that, and at 1 Mframes/s
 * from 640 to 170 us (testpmd, which polls for ever: 2.8 and 150 us).
 *
 * The order of that is what keeps wake-ups from getting lost: the poller is done with the ring, then
 * says so (store COLD), and only then the task drains, which asks for kicks and looks once more
 * whether something has come meanwhile (arm, re-check).
 *
 * A poller works under its lock. Between two turns it looks whether control wants it, and waits
 * until control has had it; so control waits for one drain at most. What goes on in the ring itself
 * (a stop, another memory table) needs nothing of that, as it happens under the ring's own lock.
 *
 * A poller that is busy has the processor, and a COLD ring's watcher may not get it for milliseconds.
 * So it looks for kicks, too, but not so often that its own rings would notice: a look is a system call.
 * All kicked rings together have as much time as one that is polled, a turn in each round or one more
 * drain: most need a microsecond, and one that is kicked again and again is not to have more than others.
 *
 * What a drain leaves to do goes to the task in two halves. The poller adds to one of them until the
 * task has nothing of the other one to do any more, and then hands it over. When there is no room left,
 * what the ring waits for is the task, so that gets it back: a guest that floods the gateway is as fast
 * as its services without a thread that spins for it.
 *
 * Whom to wake is handed over by itself, and the task asks for it between two answers, too: the answers
 * of one half may take milliseconds, and are nothing to those who wait for their frames.
 *
 * Barriers, by letter:
 *   H  release when a half, or whom to wake, is handed over, either way: with the acquire of who gets it.
 *   R  release of `released`, after all that the poller did: with the acquire of the task.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	EARNS = 8,			/* one of so many nanoseconds in which packets come ... */
	MOST_EARNED = 20,		/* ... up to so many times the usual patience */
	MOST_EARNED_NS = 1000 * 1000,	/* ... and so much */
	LOOK_NS = 50 * 1000,		/* between two looks for kicks, and for each of them */
};

/* What some drains have left to do. */
struct half {
	_Atomic bool given;		/* to the task; else it is the poller's */
	struct mv_drained drained;
	uint8_t buffer[MV_PUNT_BYTES];
};

/* Whom some drains leave to wake. */
struct wake_ups {
	_Atomic bool given;		/* as in a half */
	unsigned int n;
	struct mv_woken woken[MV_MAX_WOKEN];
};

struct mv_hot {
	mv_poller *poller;
	mv_port *port;
	unsigned int pair;
	/* Under the poller's lock. */
	mv_hot *next;			/* in the round of its poller */
	mv_hot *previous;
	struct mv_patience patience;
	uint64_t stays_until;
	uint64_t clock;			/* what our clock lacks to the caller's */
	int event_fd;
	_Atomic bool released;
	unsigned int filling;		/* the half that the poller adds to, or the next */
	unsigned int taking;		/* the one that the task has, or the next */
	struct half halves[2];
	struct wake_ups wake_ups;
};

struct mv_poller {
	_Alignas(MV_CACHE_LINE) struct mv_control control;	/* of what follows */
	bool stopping;
	mv_hot *turn;			/* whose turn is next; NULL: there is none */
	unsigned int rings;		/* in the round */
	uint64_t idle_ns;
	mv_worker *worker;
	mv_watcher *watcher;		/* whose kicks it looks for; NULL: nobody's */
	uint64_t looked_at;
	unsigned int turns;		/* since then */
};

mv_poller *mv_poller_new(uint64_t idle_ns)
{
	mv_poller *poller = aligned_alloc(MV_CACHE_LINE, sizeof(*poller));

	if (!poller)
		return NULL;
	memset(poller, 0, sizeof(*poller));
	poller->worker = mv_worker_new();
	if (!poller->worker) {
		free(poller);
		return NULL;
	}
	poller->idle_ns = idle_ns;
	mv_control_init(&poller->control);
	return poller;
}

void mv_poller_free(mv_poller *poller)
{
	if (!poller)
		return;
	mv_worker_free(poller->worker);
	mv_control_destroy(&poller->control);
	free(poller);
}

/* ---- patience ---- */

void mv_patience_begin(struct mv_patience *patience, uint64_t usual, uint64_t now)
{
	*patience = (struct mv_patience){ .usual = usual, .busy_at = now };
}

static void earn(struct mv_patience *patience, uint64_t ns)
{
	uint64_t most = patience->usual < MOST_EARNED_NS / MOST_EARNED ?
				patience->usual * MOST_EARNED : MOST_EARNED_NS;

	patience->earned += ns / EARNS;
	if (patience->earned > most)
		patience->earned = most;
}

/* What was waited for packets beyond the usual time is paid for. */
void mv_patience_busy(struct mv_patience *patience, uint64_t now)
{
	uint64_t idle = patience->idle_since ? now - patience->idle_since : 0;
	uint64_t price = idle > patience->usual ? idle - patience->usual : 0;

	if (price == 0)
		earn(patience, now - patience->busy_at);
	else
		patience->earned -= price < patience->earned ? price : patience->earned;
	patience->idle_since = 0;
	patience->busy_at = now;
}

bool mv_patience_ends(struct mv_patience *patience, uint64_t now)
{
	if (patience->idle_since == 0)
		patience->idle_since = now;
	return now - patience->idle_since >= patience->usual + patience->earned;
}

/* ---- what is left to do ---- */

static void signal_task(const mv_hot *hot)
{
	static const uint64_t one = 1;
	ssize_t written = write(hot->event_fd, &one, sizeof(one));

	/* A full counter is as good as one more. */
	(void)written;
}

static void move_wake_ups(struct mv_drained *from, struct mv_woken *to, unsigned int *n)
{
	memcpy(to, from->woken, from->n_woken * sizeof(to[0]));
	*n = from->n_woken;
	from->n_woken = 0;
}

/* Tell the task whom to wake, unless it has not looked since it was told before. */
static void hand_over_wake_ups(mv_hot *hot)
{
	struct mv_drained *drained = &hot->halves[hot->filling].drained;
	struct wake_ups *wake_ups = &hot->wake_ups;

	if (drained->n_woken == 0 || atomic_load_explicit(&wake_ups->given, memory_order_acquire)) /* H */
		return;
	move_wake_ups(drained, wake_ups->woken, &wake_ups->n);
	atomic_store_explicit(&wake_ups->given, true, memory_order_release); /* H */
	signal_task(hot);
}

/*
 * Give the task what there is for services, unless it is busy with what it was given before. So the half
 * that is filled is never the task's. Whom to wake stays here until the task has looked: it is not to
 * wait for answers, and of what was given only those are left.
 */
static void hand_over(mv_hot *hot)
{
	struct half *half = &hot->halves[hot->filling];
	struct half *other = &hot->halves[1 - hot->filling];

	if (half->drained.n_punts == 0 || atomic_load_explicit(&other->given, memory_order_acquire)) /* H */
		return;
	move_wake_ups(&half->drained, other->drained.woken, &other->drained.n_woken);
	atomic_store_explicit(&half->given, true, memory_order_release); /* H */
	hot->filling = 1 - hot->filling;
	signal_task(hot);
}

unsigned int mv_hot_take_woken(mv_hot *hot, struct mv_woken *woken)
{
	struct wake_ups *wake_ups = &hot->wake_ups;
	unsigned int n;

	if (!atomic_load_explicit(&wake_ups->given, memory_order_acquire)) /* H */
		return 0;
	n = wake_ups->n;
	memcpy(woken, wake_ups->woken, n * sizeof(woken[0]));
	atomic_store_explicit(&wake_ups->given, false, memory_order_release); /* H */
	return n;
}

const struct mv_drained *mv_hot_take(mv_hot *hot, const uint8_t **buffer)
{
	bool released = mv_hot_released(hot);
	struct half *half = &hot->halves[hot->taking];

	/* Of a ring that was released, everything is the task's. */
	if (!atomic_load_explicit(&half->given, memory_order_acquire) && /* H */
	    !(released && mv_drained_leaves(&half->drained)))
		return NULL;
	*buffer = half->buffer;
	return &half->drained;
}

void mv_hot_done(mv_hot *hot)
{
	struct half *half = &hot->halves[hot->taking];

	half->drained.n_punts = 0;
	half->drained.n_woken = 0;
	hot->taking = 1 - hot->taking;
	atomic_store_explicit(&half->given, false, memory_order_release); /* H */
}

/* ---- the round, under the poller's lock ---- */

static void leave_round(mv_hot *hot)
{
	mv_poller *poller = hot->poller;

	poller->rings--;
	if (poller->turn == hot)
		poller->turn = hot->next == hot ? NULL : hot->next;
	hot->previous->next = hot->next;
	hot->next->previous = hot->previous;
}

static void enter_round(mv_hot *hot)
{
	mv_poller *poller = hot->poller;
	mv_hot *first = poller->turn;

	poller->rings++;
	if (!first) {
		hot->next = hot->previous = hot;
		poller->turn = hot;
		return;
	}
	hot->next = first;
	hot->previous = first->previous;
	hot->previous->next = hot;
	first->previous = hot;
}

/* The last that the poller has to do with it, and only ever once. */
static void release(mv_hot *hot)
{
	leave_round(hot);
	atomic_store_explicit(&hot->released, true, memory_order_release); /* R */
	signal_task(hot);
}

bool mv_hot_released(const mv_hot *hot)
{
	return atomic_load_explicit(&hot->released, memory_order_acquire); /* R */
}

/* ---- the thread ---- */

/* One turn of one ring; whether to go on with it. */
static bool poll_ring(mv_hot *hot, uint64_t now)
{
	struct half *half = &hot->halves[hot->filling];
	enum mv_poll found = mv_port_poll(hot->poller->worker, hot->port, hot->pair,
					  hot->clock + now, half->buffer, &half->drained);

	hand_over_wake_ups(hot);
	hand_over(hot);
	switch (found) {
	case MV_POLL_BUSY:
		mv_patience_busy(&hot->patience, now);
		return true;
	case MV_POLL_IDLE:
		mv_relax();
		return !mv_patience_ends(&hot->patience, now) || now < hot->stays_until;
	case MV_POLL_FULL:
	case MV_POLL_DOWN:
		break;
	}
	return false;
}

/* After a turn, which began at `now`. */
static void look_for_kicks(mv_poller *poller, uint64_t now)
{
	uint64_t end;

	poller->turns++;
	if (!poller->watcher || poller->turns < poller->rings || now - poller->looked_at < LOOK_NS)
		return;
	end = mv_now_ns() + LOOK_NS;
	do {
		if (!mv_watcher_help(poller->watcher, poller->worker))
			break;
	} while (mv_now_ns() < end && !mv_control_is_wanted(&poller->control));
	poller->looked_at = now;
	poller->turns = 0;
}

static void next_turn(mv_poller *poller)
{
	mv_hot *hot = poller->turn;
	uint64_t now = mv_now_ns();

	poller->turn = hot->next;
	if (!poll_ring(hot, now))
		release(hot);
	look_for_kicks(poller, now);
}

/* Until it is the poller's turn, and there is something to do. */
static void wait_for_work(mv_poller *poller)
{
	while (mv_control_is_wanted(&poller->control) || (!poller->turn && !poller->stopping))
		mv_control_wait(&poller->control);
}

void mv_poller_run(mv_poller *poller)
{
	sigset_t before;

	mv_block_signals(&before);
	mv_control_begin_turn(&poller->control);
	for (;;) {
		wait_for_work(poller);
		if (poller->stopping)
			break;
		next_turn(poller);
	}
	mv_control_end_turn(&poller->control);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- control ---- */

void mv_poller_stop(mv_poller *poller)
{
	mv_control_begin(&poller->control);
	poller->stopping = true;
	while (poller->turn)
		release(poller->turn);
	mv_control_end(&poller->control);
}

void mv_poller_help(mv_poller *poller, mv_watcher *watcher)
{
	mv_control_begin(&poller->control);
	poller->watcher = watcher;
	mv_control_end(&poller->control);
}

/* The buffers are left as they are: most rings never need them. */
static void begin_half(struct half *half)
{
	atomic_init(&half->given, false);
	half->drained.n_punts = 0;
	half->drained.n_woken = 0;
}

/* Or get it back at once. */
static void join(mv_hot *hot, mv_poller *poller)
{
	mv_control_begin(&poller->control);
	hot->poller = poller;
	enter_round(hot);
	if (poller->stopping)
		release(hot);
	mv_control_end(&poller->control);
}

mv_hot *mv_poller_add(mv_poller *poller, mv_port *port, unsigned int pair, uint64_t now,
		      uint64_t stay_ns, int event_fd)
{
	mv_hot *hot = malloc(sizeof(*hot));
	uint64_t ours = mv_now_ns();

	if (!hot)
		return NULL;
	hot->port = port;
	hot->pair = pair;
	mv_patience_begin(&hot->patience, poller->idle_ns, ours);
	hot->stays_until = ours + stay_ns;
	hot->clock = now - ours;
	hot->event_fd = event_fd;
	atomic_init(&hot->released, false);
	hot->filling = 0;
	hot->taking = 0;
	begin_half(&hot->halves[0]);
	begin_half(&hot->halves[1]);
	atomic_init(&hot->wake_ups.given, false);
	join(hot, poller);
	return hot;
}

bool mv_hot_move(mv_hot *hot, mv_poller *to)
{
	mv_poller *from = hot->poller;
	bool moves;

	mv_control_begin(&from->control);
	moves = !mv_hot_released(hot);
	if (moves)
		leave_round(hot);
	mv_control_end(&from->control);
	if (moves)
		join(hot, to);
	return moves;
}

void mv_hot_remove(mv_hot *hot)
{
	mv_control_begin(&hot->poller->control);
	if (!mv_hot_released(hot))
		release(hot);
	mv_control_end(&hot->poller->control);
}

void mv_hot_free(mv_hot *hot)
{
	free(hot);
}
