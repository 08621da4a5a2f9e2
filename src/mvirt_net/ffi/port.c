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

/* ---- pairs ---- */

static bool is_rx(unsigned int queue)
{
	return queue % MV_QUEUES == MV_RX;
}

static void begin_pair(struct mv_pair *pair, mv_port *port, unsigned int index)
{
	pair->port = port;
	pair->index = index;
	for (unsigned int i = 0; i < MV_QUEUES; i++) {
		struct mv_ring *ring = &pair->rings[i];

		ring->call_fd = -1;
		ring->err_fd = -1;
		ring->debt = &port->debt;
		ring->enabled = port->enabled >> (index * MV_QUEUES + i) & 1;
	}
	__atomic_store_n(&port->pairs[index], pair, __ATOMIC_RELEASE);
}

static void end_pair(struct mv_pair *pair)
{
	mv_backlog_clear(pair);
	for (unsigned int i = 0; i < MV_QUEUES; i++)
		free(pair->rings[i].taken);
}

/* Where a ring is, or NULL; made if it is to be used and has never been. */
static struct mv_pair *find_pair(mv_port *port, unsigned int queue, bool make)
{
	unsigned int index = queue / MV_QUEUES;
	struct mv_pair *pair = mv_port_pair(port, index);

	if (pair || !make)
		return pair;
	pair = aligned_alloc(MV_CACHE_LINE, sizeof(*pair));
	if (!pair)
		return NULL;
	memset(pair, 0, sizeof(*pair));
	begin_pair(pair, port, index);
	return pair;
}

static bool is_queue(unsigned int queue)
{
	return queue < MV_MAX_PAIRS * MV_QUEUES;
}

/* All that there are: calls what follows for each of them. */
#define FOR_EACH_PAIR(port, pair)						\
	for (unsigned int at_ = 0; at_ < MV_MAX_PAIRS; at_++)			\
		for (struct mv_pair *pair = mv_port_pair(port, at_); pair; pair = NULL)

static void lock_all(mv_port *port)
{
	FOR_EACH_PAIR(port, pair)
		mv_lock(pair, MV_TX);
	FOR_EACH_PAIR(port, pair)
		mv_lock(pair, MV_RX);
}

static void unlock_all(mv_port *port)
{
	FOR_EACH_PAIR(port, pair) {
		mv_unlock(pair, MV_RX);
		mv_unlock(pair, MV_TX);
	}
}

/*
 * `up` is what others see without the lock; several threads may change it, each the bit of a ring that
 * it has the lock of. With the bit, senders see the pair.
 */
void mv_rx_note_up(struct mv_pair *pair)
{
	unsigned int bit = 1U << pair->index;

	if (mv_rx_is_up(pair) && pair->fed)
		__atomic_fetch_or(&pair->port->up, bit, __ATOMIC_RELEASE);
	else
		__atomic_fetch_and(&pair->port->up, ~bit, __ATOMIC_RELEASE);
}

struct mv_pair *mv_port_choose(mv_port *port, uint32_t hash)
{
	unsigned int up = __atomic_load_n(&port->up, __ATOMIC_ACQUIRE);
	uint64_t passed = (uint64_t)hash * (unsigned int)__builtin_popcount(up) >> 32;

	if (up == 0)
		return &port->first;
	for (; passed > 0; passed--)
		up &= up - 1;
	return mv_port_pair(port, (unsigned int)__builtin_ctz(up));
}

/* ---- the port ---- */

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
	mv_limits_begin(&port->limits);
	begin_pair(&port->first, port, 0);
	port->network = network;
	port->edition = mv_network_enter(network);
	return port;
}

void mv_port_free(mv_port *port)
{
	if (!port)
		return;
	mv_network_leave(port->network, port);
	FOR_EACH_PAIR(port, pair) {
		end_pair(pair);
		if (pair != &port->first)
			free(pair);
	}
	mv_limits_end(&port->limits);
	free(port);
}

void mv_port_set_mtu(mv_port *port, unsigned int mtu)
{
	unsigned int most = mv_network_mtu(port->network);

	__atomic_store_n(&port->mtu, mtu < most ? mtu : most, __ATOMIC_RELAXED);
}

int mv_port_set_features(mv_port *port, uint64_t features)
{
	FOR_EACH_PAIR(port, pair)
		if (features != port->features &&
		    (pair->rings[MV_RX].running || pair->rings[MV_TX].running))
			return -EBUSY;
	lock_all(port);
	port->features = features;
	unlock_all(port);
	return 0;
}

struct mv_ring_features mv_port_ring_features(const mv_port *port)
{
	return (struct mv_ring_features){
		.event_idx = port->features & MV_F_EVENT_IDX,
		.indirect = port->features & MV_F_INDIRECT_DESC,
	};
}

/* The rings of a pair as they are with another memory table: false if one does not lie within it. */
static bool move_rings(const struct mv_pair *pair, const mv_memory *memory, struct mv_ring *moved)
{
	for (unsigned int i = 0; i < MV_QUEUES; i++) {
		moved[i] = pair->rings[i];
		if (moved[i].running && mv_ring_translate(&moved[i], memory, moved[i].packed, moved[i].size,
							  &moved[i].addr) < 0)
			return false;
	}
	return true;
}

int mv_port_set_memory(mv_port *port, const mv_memory *memory)
{
	struct mv_ring moved[MV_MAX_PAIRS][MV_QUEUES];
	bool fits = true;

	lock_all(port);
	FOR_EACH_PAIR(port, pair)
		fits = fits && move_rings(pair, memory, moved[pair->index]);
	if (fits) {
		FOR_EACH_PAIR(port, pair)
			memcpy(pair->rings, moved[pair->index], sizeof(pair->rings));
		port->memory = memory;
	}
	unlock_all(port);
	return fits ? 0 : -EFAULT;
}

void mv_port_stats(const mv_port *port, struct mv_stats *stats)
{
	uint64_t *to = (uint64_t *)stats;

	memset(stats, 0, sizeof(*stats));
	FOR_EACH_PAIR(port, pair) {
		const uint64_t *from = (const uint64_t *)&pair->stats;

		for (size_t i = 0; i < sizeof(*stats) / sizeof(*to); i++)
			to[i] += __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	}
	stats->slow_signals = __atomic_load_n(&port->debt.slow_ever, __ATOMIC_RELAXED);
}

uint64_t mv_port_tx_frames(const mv_port *port, unsigned int index)
{
	const struct mv_pair *pair = index < MV_MAX_PAIRS ? mv_port_pair(port, index) : NULL;

	return pair ? __atomic_load_n(&pair->stats.tx_frames, __ATOMIC_RELAXED) : 0;
}

void mv_port_count_drop(mv_port *port, unsigned int reason)
{
	if (reason < MV_DROP_REASONS)
		mv_count_shared(&port->first.stats.drops[reason], 1);
}

/* ---- captures ---- */

bool mv_port_add_tap(mv_port *port, struct mv_tap *tap)
{
	unsigned int i = 0;

	lock_all(port);
	while (i < MV_MAX_TAPS && port->taps[i])
		i++;
	if (i < MV_MAX_TAPS)
		port->taps[i] = tap;
	unlock_all(port);
	return i < MV_MAX_TAPS;
}

void mv_port_remove_tap(mv_port *port, const struct mv_tap *tap)
{
	unsigned int kept = 0;

	lock_all(port);
	for (unsigned int i = 0; i < MV_MAX_TAPS; i++)
		if (port->taps[i] != tap)
			port->taps[kept++] = port->taps[i];
	while (kept < MV_MAX_TAPS)
		port->taps[kept++] = NULL;
	unlock_all(port);
}

void mv_port_record_punt(mv_port *port, const uint8_t *bytes, size_t length, int reason)
{
	struct mv_frame frame = { .head = bytes, .head_length = (uint32_t)length };

	if (length > MV_MAX_FRAME)
		return;
	frame.length = (uint32_t)length;
	mv_lock(&port->first, MV_TX);
	mv_tap_frame(port, MV_OUTBOUND, reason, &frame);
	mv_unlock(&port->first, MV_TX);
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
 * refills need none, unless its first buffers are still to come. A disabled ring is not touched.
 */
static void rx_refuse_kicks(struct mv_pair *pair)
{
	if (mv_rx_is_up(pair) && pair->fed)
		mv_ring_refuse_kicks(&pair->rings[MV_RX], mv_port_ring_features(pair->port));
}

/* The RX ring was started or enabled, or is no longer. */
static void rx_changed(struct mv_pair *pair)
{
	rx_refuse_kicks(pair);
	mv_rx_note_up(pair);
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

static void begin_ring(struct mv_pair *pair, struct mv_ring *ring, int64_t base)
{
	mv_ring_begin(ring, base);
	make_up_for_call(pair->port, ring);
	if (ring == &pair->rings[MV_RX]) {
		pair->fed = pair->index == 0;
		rx_changed(pair);
	}
}

int mv_ring_start(mv_port *port, unsigned int queue, unsigned int size,
		  const struct mv_ring_addr *addr, int64_t base)
{
	struct mv_pair *pair;
	struct mv_ring *ring;
	int r;

	if (!is_queue(queue) || !base_fits(port, size, base))
		return -EINVAL;
	pair = find_pair(port, queue, true);
	if (!pair)
		return -ENOMEM;
	ring = &pair->rings[queue % MV_QUEUES];
	if (ring->running)
		return -EBUSY;
	mv_lock(pair, queue % MV_QUEUES);
	r = mv_ring_translate(ring, port->memory, has_packed_rings(port), size, addr);
	if (r == 0)
		r = make_room_for_taken(ring);
	if (r == 0)
		begin_ring(pair, ring, base);
	mv_unlock(pair, queue % MV_QUEUES);
	return r;
}

int mv_ring_move(mv_port *port, unsigned int queue, const struct mv_ring_addr *addr)
{
	struct mv_pair *pair = is_queue(queue) ? find_pair(port, queue, false) : NULL;
	struct mv_ring *ring;
	int r;

	if (!pair || !pair->rings[queue % MV_QUEUES].running)
		return -EINVAL;
	ring = &pair->rings[queue % MV_QUEUES];
	mv_lock(pair, queue % MV_QUEUES);
	r = mv_ring_translate(ring, port->memory, ring->packed, ring->size, addr);
	mv_unlock(pair, queue % MV_QUEUES);
	return r;
}

int64_t mv_ring_stop(mv_port *port, unsigned int queue)
{
	struct mv_pair *pair;
	struct mv_ring *ring;
	int64_t base;

	if (!is_queue(queue))
		return -EINVAL;
	pair = find_pair(port, queue, false);
	if (!pair)
		return 0;
	ring = &pair->rings[queue % MV_QUEUES];
	mv_lock(pair, queue % MV_QUEUES);
	/* A drain of another port may have moved frames here and not come round to saying so. */
	if (ring->running)
		mv_pair_publish(pair, queue % MV_QUEUES);
	if (is_rx(queue))
		mv_backlog_drop(pair, MV_DROP_RX_RING_DOWN);
	ring->running = false;
	free_taken(ring);
	if (is_rx(queue))
		mv_rx_note_up(pair);
	base = mv_ring_base(ring);
	mv_unlock(pair, queue % MV_QUEUES);
	return base;
}

int mv_ring_enable(mv_port *port, unsigned int queue, bool enabled)
{
	struct mv_pair *pair;

	if (!is_queue(queue))
		return -EINVAL;
	port->enabled = enabled ? port->enabled | 1U << queue : port->enabled & ~(1U << queue);
	pair = find_pair(port, queue, false);
	if (!pair)
		return 0;
	mv_lock(pair, queue % MV_QUEUES);
	pair->rings[queue % MV_QUEUES].enabled = enabled;
	if (is_rx(queue))
		rx_changed(pair);
	mv_unlock(pair, queue % MV_QUEUES);
	return 0;
}

bool mv_ring_broken(mv_port *port, unsigned int queue)
{
	struct mv_pair *pair = is_queue(queue) ? find_pair(port, queue, false) : NULL;
	const struct mv_ring *ring;
	bool broken;

	if (!pair)
		return false;
	ring = &pair->rings[queue % MV_QUEUES];
	mv_lock(pair, queue % MV_QUEUES);
	broken = ring->running && ring->broken;
	mv_unlock(pair, queue % MV_QUEUES);
	return broken;
}

void mv_ring_look(mv_port *port, unsigned int queue, struct mv_ring_state *state)
{
	struct mv_pair *pair = is_queue(queue) ? find_pair(port, queue, false) : NULL;
	const struct mv_ring *ring;

	*state = (struct mv_ring_state){ 0 };
	if (!pair)
		return;
	ring = &pair->rings[queue % MV_QUEUES];
	mv_lock(pair, queue % MV_QUEUES);
	*state = (struct mv_ring_state){
		.running = ring->running,
		.enabled = ring->enabled,
		.broken = ring->running && ring->broken,
		.packed = ring->packed,
		.wants_kicks = ring->running && ring->armed,
		.size = ring->size,
		.next = ring->last_avail,
	};
	mv_unlock(pair, queue % MV_QUEUES);
}

static int set_nonblocking(int fd)
{
	int flags;

	if (fd < 0)
		return 0;
	flags = fcntl(fd, F_GETFL);
	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/*
 * The pair whose ring is given a descriptor, now non-blocking, in *pair; NULL: there is none, and
 * nothing to be taken from it.
 */
static int pair_for_fd(mv_port *port, unsigned int queue, int fd, struct mv_pair **pair)
{
	int r = is_queue(queue) ? set_nonblocking(fd) : -EINVAL;

	if (r < 0)
		return r;
	*pair = find_pair(port, queue, fd >= 0);
	return *pair || fd < 0 ? 0 : -ENOMEM;
}

int mv_ring_set_call(mv_port *port, unsigned int queue, int fd)
{
	struct mv_pair *pair;
	int r = pair_for_fd(port, queue, fd, &pair);

	if (r < 0 || !pair)
		return r;
	mv_lock(pair, queue % MV_QUEUES);
	pair->rings[queue % MV_QUEUES].call_fd = fd;
	make_up_for_call(port, &pair->rings[queue % MV_QUEUES]);
	/* That may have been one slow call too many. */
	if (queue % MV_QUEUES == MV_RX)
		mv_rx_note_up(pair);
	mv_unlock(pair, queue % MV_QUEUES);
	return 0;
}

int mv_ring_set_err(mv_port *port, unsigned int queue, int fd)
{
	struct mv_pair *pair;
	struct mv_ring *ring;
	int r = pair_for_fd(port, queue, fd, &pair);

	if (r < 0 || !pair)
		return r;
	ring = &pair->rings[queue % MV_QUEUES];
	mv_lock(pair, queue % MV_QUEUES);
	ring->err_fd = fd;
	if (fd >= 0 && ring->running && ring->broken)
		(void)mv_debt_signal(&port->debt, fd);
	mv_unlock(pair, queue % MV_QUEUES);
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

void mv_turn_has_waited(struct mv_turn *turn)
{
	uint64_t now = mv_now_ns();

	if (turn->deadline < now)
		turn->deadline = now;
	mv_turn_look_at_clock(turn);
}

struct mv_turn mv_turn_begin(void)
{
	return (struct mv_turn){ .deadline = mv_now_ns() + TURN_NS };
}

void mv_pair_publish(struct mv_pair *pair, unsigned int queue)
{
	struct mv_ring *ring = &pair->rings[queue];

	if (mv_ring_publish(ring, mv_port_ring_features(pair->port)))
		mv_count_shared(&pair->stats.calls, 1);
	if (queue == MV_RX && ring->broken)
		mv_rx_note_up(pair);
}
