/*
 * One NIC: what it is, what has been negotiated, how its rings start and stop.
 *
 * Frames are moved by tx.c (mv_port_drain) and rx.c (mv_port_flush). Both have the same shape:
 * refuse kicks, move frames until the ring or a bound is exhausted, publish once, and ask for a
 * kick only when there is nothing left to do.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint8_t gateway_mac[6] = { 0x02, 0, 0, 0, 0, 0x01 };

/*
 * Locks of rings. A thread that polls a busy ring holds its lock, and that of the receiver, nearly
 * all the time, and lets go of it for less than a microsecond. Who sleeps until it is free comes
 * too late for that, again and again: with a plain (adaptive) mutex control waited for up to a second.
 * So there is a gate in front of the mutex, for all who do not get it at once. Whoever is in the gate
 * waits for the mutex, and is the only one who may take it; who held it before is behind him in the
 * queue. The longest wait, beside a thread that holds the lock for 50 us all the time: 40 us, and as
 * long as the scheduler takes on a machine with more to do than processors.
 *
 * Turns are short, so it pays to try for a while before sleeping (an adaptive mutex does).
 */
static void make_lock(struct mv_lock *lock)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(&lock->mutex, &attributes);
	pthread_mutex_init(&lock->gate, &attributes);
	pthread_mutexattr_destroy(&attributes);
}

static void end_lock(struct mv_lock *lock)
{
	pthread_mutex_destroy(&lock->mutex);
	pthread_mutex_destroy(&lock->gate);
}

void mv_lock_in_turn(struct mv_lock *lock)
{
	pthread_mutex_lock(&lock->gate);
	__atomic_store_n(&lock->wanted, true, __ATOMIC_RELAXED);
	pthread_mutex_lock(&lock->mutex);
	__atomic_store_n(&lock->wanted, false, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&lock->gate);
}

void mv_lock_both(mv_port *port)
{
	mv_lock(port, MV_TX);
	mv_lock(port, MV_RX);
}

void mv_unlock_both(mv_port *port)
{
	mv_unlock(port, MV_RX);
	mv_unlock(port, MV_TX);
}

/* What others see of the RX ring without its lock. */
static void note_up(mv_port *port)
{
	__atomic_store_n(&port->up, mv_rx_is_up(port), __ATOMIC_RELAXED);
}

mv_port *mv_port_new(mv_network *network, const uint8_t *mac, uint32_t tag)
{
	mv_port *port = aligned_alloc(MV_CACHE_LINE, sizeof(*port));

	if (!port)
		return NULL;
	memset(port, 0, sizeof(*port));
	memcpy(port->mac, mac, sizeof(port->mac));
	memcpy(port->gateway_mac, gateway_mac, sizeof(gateway_mac));
	port->tag = tag;
	port->mtu = mv_network_mtu(network);
	port->errors.tokens = MV_ERROR_BURST;
	for (unsigned int i = 0; i < MV_QUEUES; i++) {
		make_lock(&port->locks[i]);
		port->rings[i].call_fd = -1;
		port->rings[i].err_fd = -1;
		port->rings[i].debt = &port->debt;
	}
	port->network = network;
	port->edition = mv_network_enter(network);
	return port;
}

void mv_port_free(mv_port *port)
{
	if (!port)
		return;
	mv_network_leave(port->network, port);
	mv_backlog_clear(port);
	for (unsigned int i = 0; i < MV_QUEUES; i++) {
		free(port->rings[i].taken);
		end_lock(&port->locks[i]);
	}
	free(port);
}

void mv_port_set_mtu(mv_port *port, unsigned int mtu)
{
	unsigned int most = mv_network_mtu(port->network);

	__atomic_store_n(&port->mtu, mtu < most ? mtu : most, __ATOMIC_RELAXED);
}

int mv_port_set_features(mv_port *port, uint64_t features)
{
	if (features != port->features && (port->rings[MV_RX].running || port->rings[MV_TX].running))
		return -EBUSY;
	mv_lock_both(port);
	port->features = features;
	mv_unlock_both(port);
	return 0;
}

struct mv_ring_features mv_port_ring_features(const mv_port *port)
{
	return (struct mv_ring_features){
		.event_idx = port->features & MV_F_EVENT_IDX,
		.indirect = port->features & MV_F_INDIRECT_DESC,
	};
}

int mv_port_set_memory(mv_port *port, const mv_memory *memory)
{
	struct mv_ring moved[MV_QUEUES];
	int r = 0;

	mv_lock_both(port);
	for (unsigned int i = 0; i < MV_QUEUES && r == 0; i++) {
		struct mv_ring *ring = &port->rings[i];

		moved[i] = *ring;
		if (ring->running && mv_ring_translate(&moved[i], memory, ring->packed, ring->size,
						       &ring->addr) < 0)
			r = -EFAULT;
	}
	if (r == 0) {
		memcpy(port->rings, moved, sizeof(moved));
		port->memory = memory;
	}
	mv_unlock_both(port);
	return r;
}

void mv_port_stats(const mv_port *port, struct mv_stats *stats)
{
	const uint64_t *from = (const uint64_t *)&port->stats;
	uint64_t *to = (uint64_t *)stats;

	for (size_t i = 0; i < sizeof(*stats) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	stats->slow_signals = __atomic_load_n(&port->debt.slow_ever, __ATOMIC_RELAXED);
}

void mv_port_count_drop(mv_port *port, unsigned int reason)
{
	if (reason < MV_DROP_REASONS)
		mv_count_shared(&port->stats.drops[reason], 1);
}

/* ---- rings ---- */

static bool has_packed_rings(const mv_port *port)
{
	return port->features & MV_F_RING_PACKED;
}

int mv_ring_check(const mv_port *port, unsigned int size, const struct mv_ring_addr *addr)
{
	struct mv_ring scratch;

	return mv_ring_translate(&scratch, port->memory, has_packed_rings(port), size, addr);
}

/*
 * The backlog asks for kicks when it has to wait, so an RX ring is told from the start that its
 * refills need none. A disabled ring is not touched.
 */
static void rx_refuse_kicks(mv_port *port)
{
	if (mv_rx_is_up(port))
		mv_ring_refuse_kicks(&port->rings[MV_RX], mv_port_ring_features(port));
}

/* The RX ring was started or enabled, or is no longer. */
static void rx_changed(mv_port *port)
{
	rx_refuse_kicks(port);
	note_up(port);
}

/*
 * Give the driver an interrupt that it may have missed: the former device was killed after it had
 * published and before it called, or called by a descriptor that is closed by now (QEMU replaces it
 * late). If all RX buffers are used, the driver would wait for the call and the device for buffers.
 */
static void make_up_for_call(const mv_port *port, struct mv_ring *ring)
{
	if (ring->running && mv_ring_owes_call(ring, mv_port_ring_features(port)))
		(void)mv_ring_call(ring);
}

/* Whether SET_VRING_BASE may say so. */
static bool base_fits(const mv_port *port, unsigned int size, int64_t base)
{
	if (!has_packed_rings(port))
		return base <= UINT16_MAX;
	return base < 0 || (base <= UINT32_MAX && (base & 0x7fff) < size && (base >> 16 & 0x7fff) < size);
}

/* For a ring that is about to start. */
static int make_room_for_taken(struct mv_ring *ring)
{
	if (!ring->packed)
		return 0;
	ring->taken = malloc(mv_most_taken(ring) * sizeof(*ring->taken));
	return ring->taken ? 0 : -ENOMEM;
}

static void free_taken(struct mv_ring *ring)
{
	free(ring->taken);
	ring->taken = NULL;
}

int mv_ring_start(mv_port *port, unsigned int queue, unsigned int size,
		  const struct mv_ring_addr *addr, int64_t base)
{
	struct mv_ring *ring;
	int r;

	if (queue >= MV_QUEUES || !base_fits(port, size, base))
		return -EINVAL;
	ring = &port->rings[queue];
	if (ring->running)
		return -EBUSY;
	mv_lock(port, queue);
	r = mv_ring_translate(ring, port->memory, has_packed_rings(port), size, addr);
	if (r == 0)
		r = make_room_for_taken(ring);
	if (r == 0) {
		mv_ring_begin(ring, base);
		make_up_for_call(port, ring);
		if (queue == MV_RX)
			rx_changed(port);
	}
	mv_unlock(port, queue);
	return r;
}

int mv_ring_move(mv_port *port, unsigned int queue, const struct mv_ring_addr *addr)
{
	struct mv_ring *ring;
	int r;

	if (queue >= MV_QUEUES || !port->rings[queue].running)
		return -EINVAL;
	ring = &port->rings[queue];
	mv_lock(port, queue);
	r = mv_ring_translate(ring, port->memory, ring->packed, ring->size, addr);
	mv_unlock(port, queue);
	return r;
}

int64_t mv_ring_stop(mv_port *port, unsigned int queue)
{
	struct mv_ring *ring;
	int64_t base;

	if (queue >= MV_QUEUES)
		return -EINVAL;
	ring = &port->rings[queue];
	mv_lock(port, queue);
	/* A drain of another port may have moved frames here and not come round to saying so. */
	if (ring->running)
		mv_port_publish(port, queue);
	if (queue == MV_RX) {
		mv_count_shared(&port->stats.drops[MV_DROP_RX_RING_DOWN], port->backlog_length);
		mv_backlog_clear(port);
	}
	ring->running = false;
	free_taken(ring);
	if (queue == MV_RX)
		note_up(port);
	base = mv_ring_base(ring);
	mv_unlock(port, queue);
	return base;
}

int mv_ring_enable(mv_port *port, unsigned int queue, bool enabled)
{
	if (queue >= MV_QUEUES)
		return -EINVAL;
	mv_lock(port, queue);
	port->rings[queue].enabled = enabled;
	if (queue == MV_RX)
		rx_changed(port);
	mv_unlock(port, queue);
	return 0;
}

bool mv_ring_broken(mv_port *port, unsigned int queue)
{
	bool broken;

	if (queue >= MV_QUEUES)
		return false;
	mv_lock(port, queue);
	broken = port->rings[queue].running && port->rings[queue].broken;
	mv_unlock(port, queue);
	return broken;
}

static int set_nonblocking(int fd)
{
	int flags;

	if (fd < 0)
		return 0;
	flags = fcntl(fd, F_GETFL);
	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

int mv_ring_set_call(mv_port *port, unsigned int queue, int fd)
{
	int r = queue < MV_QUEUES ? set_nonblocking(fd) : -EINVAL;

	if (r < 0)
		return r;
	mv_lock(port, queue);
	port->rings[queue].call_fd = fd;
	make_up_for_call(port, &port->rings[queue]);
	/* That may have been one slow call too many. */
	if (queue == MV_RX)
		note_up(port);
	mv_unlock(port, queue);
	return 0;
}

int mv_ring_set_err(mv_port *port, unsigned int queue, int fd)
{
	int r = queue < MV_QUEUES ? set_nonblocking(fd) : -EINVAL;

	if (r < 0)
		return r;
	mv_lock(port, queue);
	port->rings[queue].err_fd = fd;
	if (fd >= 0 && port->rings[queue].running && port->rings[queue].broken)
		(void)mv_debt_signal(&port->debt, fd);
	mv_unlock(port, queue);
	return 0;
}

/* ---- the bound of one call ---- */

enum {
	TURN_NS = 50 * 1000,
	GRACE_NS = 150 * 1000,	/* more, for the packet that is being sent on in pieces */
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

uint64_t mv_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t mv_thread_ns(void)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

void mv_turn_look_at_clock(struct mv_turn *turn)
{
	uint64_t now = mv_now_ns();

	turn->work = 0;
	turn->over = now >= turn->deadline;
	turn->overdue = now >= turn->deadline + GRACE_NS;
}

struct mv_turn mv_turn_begin(void)
{
	return (struct mv_turn){ .deadline = mv_now_ns() + TURN_NS };
}

void mv_port_publish(mv_port *port, unsigned int queue)
{
	struct mv_ring *ring = &port->rings[queue];

	if (mv_ring_publish(ring, mv_port_ring_features(port)))
		mv_count_shared(&port->stats.calls, 1);
	if (queue == MV_RX && ring->broken)
		note_up(port);
}
