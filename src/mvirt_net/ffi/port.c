/*
 * One NIC: its two rings, the backlog of frames for the guest, and its counters.
 *
 * TX (mv_port_drain) and RX (mv_port_flush) have the same shape: refuse kicks, move frames until
 * the ring or a bound is exhausted, publish once, and ask for a kick only when there is nothing
 * left to do.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	QUEUES = 2,
	RX = 0,
	TX = 1,
	ETH_SIZE = 14,

	/* Bounds of one call, so that a guest without end does not hold up the others. */
	TURN_NS = 50 * 1000,
	TURN_BYTES = 1 << 20,
	CLOCK_EVERY = 32,	/* descriptors and frames between looks at the clock: 25 ns each */
};

struct backlog_frame {
	uint8_t *data;
	uint32_t length;
};

struct mv_port {
	struct mv_identity identity;
	uint64_t features;
	const mv_memory *memory;
	struct mv_ring rings[QUEUES];
	struct backlog_frame backlog[MV_BACKLOG];
	unsigned int backlog_first;
	unsigned int backlog_length;
	struct mv_stats stats;
};

mv_port *mv_port_new(const uint8_t *mac)
{
	mv_port *port = calloc(1, sizeof(*port));

	if (!port)
		return NULL;
	memcpy(port->identity.mac, mac, sizeof(port->identity.mac));
	for (unsigned int i = 0; i < QUEUES; i++) {
		port->rings[i].call_fd = -1;
		port->rings[i].err_fd = -1;
	}
	return port;
}

static void backlog_pop(mv_port *port)
{
	free(port->backlog[port->backlog_first].data);
	port->backlog_first = (port->backlog_first + 1) % MV_BACKLOG;
	port->backlog_length--;
}

static void backlog_clear(mv_port *port)
{
	while (port->backlog_length > 0)
		backlog_pop(port);
}

void mv_port_free(mv_port *port)
{
	if (!port)
		return;
	backlog_clear(port);
	free(port);
}

void mv_port_set_gateway_ipv4(mv_port *port, const uint8_t *address)
{
	memcpy(port->identity.gateway_ipv4, address, sizeof(port->identity.gateway_ipv4));
}

int mv_port_set_features(mv_port *port, uint64_t features)
{
	if (features != port->features && (port->rings[RX].running || port->rings[TX].running))
		return -EBUSY;
	port->features = features;
	return 0;
}

static struct mv_ring_features ring_features(const mv_port *port)
{
	return (struct mv_ring_features){
		.event_idx = port->features & MV_F_EVENT_IDX,
		.indirect = port->features & MV_F_INDIRECT_DESC,
	};
}

int mv_port_set_memory(mv_port *port, const mv_memory *memory)
{
	struct mv_ring moved[QUEUES];

	for (unsigned int i = 0; i < QUEUES; i++) {
		struct mv_ring *ring = &port->rings[i];

		moved[i] = *ring;
		if (!ring->running)
			continue;
		if (mv_ring_translate(&moved[i], memory, ring->size, &ring->addr) < 0)
			return -EFAULT;
	}
	memcpy(port->rings, moved, sizeof(moved));
	port->memory = memory;
	return 0;
}

void mv_port_stats(const mv_port *port, struct mv_stats *stats)
{
	*stats = port->stats;
}

void mv_port_count_drop(mv_port *port, unsigned int reason)
{
	if (reason < MV_DROP_REASONS)
		port->stats.drops[reason]++;
}

/* ---- rings ---- */

int mv_ring_check(const mv_port *port, unsigned int size, const struct mv_ring_addr *addr)
{
	struct mv_ring scratch;

	return mv_ring_translate(&scratch, port->memory, size, addr);
}

/* Whether frames may go to the guest. */
static bool rx_is_up(const mv_port *port)
{
	const struct mv_ring *ring = &port->rings[RX];

	return ring->running && ring->enabled && !ring->broken;
}

/*
 * The backlog asks for kicks when it has to wait, so an RX ring is told from the start that its
 * refills need none. A disabled ring is not touched.
 */
static void rx_refuse_kicks(mv_port *port)
{
	if (rx_is_up(port))
		mv_ring_refuse_kicks(&port->rings[RX], ring_features(port));
}

int mv_ring_start(mv_port *port, unsigned int queue, unsigned int size,
		  const struct mv_ring_addr *addr, int base)
{
	struct mv_ring *ring;
	int r;

	if (queue >= QUEUES || base > UINT16_MAX)
		return -EINVAL;
	ring = &port->rings[queue];
	if (ring->running)
		return -EBUSY;
	r = mv_ring_translate(ring, port->memory, size, addr);
	if (r < 0)
		return r;
	mv_ring_begin(ring, base);
	if (queue == RX)
		rx_refuse_kicks(port);
	return 0;
}

int mv_ring_move(mv_port *port, unsigned int queue, const struct mv_ring_addr *addr)
{
	if (queue >= QUEUES || !port->rings[queue].running)
		return -EINVAL;
	return mv_ring_translate(&port->rings[queue], port->memory, port->rings[queue].size, addr);
}

int mv_ring_stop(mv_port *port, unsigned int queue)
{
	if (queue >= QUEUES)
		return -EINVAL;
	if (queue == RX) {
		port->stats.drops[MV_DROP_RX_RING_DOWN] += port->backlog_length;
		backlog_clear(port);
	}
	port->rings[queue].running = false;
	return port->rings[queue].last_avail;
}

int mv_ring_enable(mv_port *port, unsigned int queue, bool enabled)
{
	if (queue >= QUEUES)
		return -EINVAL;
	port->rings[queue].enabled = enabled;
	if (queue == RX)
		rx_refuse_kicks(port);
	return 0;
}

bool mv_ring_broken(const mv_port *port, unsigned int queue)
{
	return queue < QUEUES && port->rings[queue].running && port->rings[queue].broken;
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
	int r = queue < QUEUES ? set_nonblocking(fd) : -EINVAL;

	if (r < 0)
		return r;
	port->rings[queue].call_fd = fd;
	/* What the former descriptor was told may never reach the driver (QEMU replaces it late). */
	if (fd >= 0 && port->rings[queue].running && port->rings[queue].signalled_valid)
		(void)mv_event_write(fd);
	return 0;
}

int mv_ring_set_err(mv_port *port, unsigned int queue, int fd)
{
	int r = queue < QUEUES ? set_nonblocking(fd) : -EINVAL;

	if (r < 0)
		return r;
	port->rings[queue].err_fd = fd;
	if (fd >= 0 && mv_ring_broken(port, queue))
		(void)mv_event_write(fd);
	return 0;
}

/* ---- the bound of one call ---- */

struct turn {
	uint64_t deadline;	/* ns of CLOCK_MONOTONIC */
	uint64_t bytes;
	unsigned int work;	/* since the last look at the clock */
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static bool turn_is_over(struct turn *turn, uint64_t bytes)
{
	turn->bytes += bytes;
	turn->work++;
	if (turn->bytes >= TURN_BYTES)
		return true;
	if (turn->work < CLOCK_EVERY)
		return false;
	turn->work = 0;
	return now_ns() >= turn->deadline;
}

static struct turn turn_begin(void)
{
	return (struct turn){ .deadline = now_ns() + TURN_NS };
}

static void publish(mv_port *port, struct mv_ring *ring)
{
	if (mv_ring_publish(ring, ring_features(port)))
		port->stats.calls++;
}

/* ---- TX: frames from the guest ---- */

/* Where slow-path frames go. */
struct punts {
	uint8_t *buffer;
	size_t used;
	struct mv_punt *entries;
	unsigned int n;
};

static bool punts_have_room(const struct punts *punts)
{
	return punts->n < MV_PUNT_FRAMES && MV_PUNT_BYTES - punts->used >= MV_MAX_FRAME;
}

/* Copy the frame: the bytes that were judged from their private copy, the rest from the guest. */
static void add_punt(struct punts *punts, unsigned int kind, const struct mv_chain *chain,
		     uint32_t skip, const uint8_t *head, uint32_t length)
{
	uint8_t *to = punts->buffer + punts->used;
	uint32_t judged = length < MV_PEEK ? length : MV_PEEK;

	memcpy(to, head, judged);
	mv_chain_read(chain, skip + judged, to + judged, length - judged);
	punts->entries[punts->n++] = (struct mv_punt){
		.kind = kind, .offset = (uint32_t)punts->used, .length = length,
	};
	punts->used += length;
}

/* Decide about one transmitted frame: a punt, or the reason in *reason. */
static bool receive_frame(mv_port *port, const struct mv_chain *chain, struct punts *punts,
			  enum mv_drop *reason)
{
	uint32_t header = mv_net_hdr_size(port->features), length;
	struct mv_net_hdr hdr = { 0 };
	uint8_t head[MV_PEEK];
	struct mv_verdict verdict;

	*reason = MV_DROP_TX_BUFFER_INVALID;
	if (chain->faulty)
		return false;
	*reason = MV_DROP_TX_TOO_SHORT;
	if (chain->length < header + ETH_SIZE)
		return false;
	*reason = MV_DROP_TX_TOO_LONG;
	if (chain->length > header + MV_MAX_FRAME)
		return false;
	length = (uint32_t)chain->length - header;
	mv_chain_read(chain, 0, &hdr, header);
	mv_chain_read(chain, header, head, sizeof(head));
	*reason = MV_DROP_OFFLOAD_NOT_NEGOTIATED;
	if (!mv_net_hdr_allowed(&hdr))
		return false;
	verdict = mv_classify(&port->identity, head, length);
	*reason = verdict.value;
	if (verdict.punt)
		add_punt(punts, verdict.value, chain, header, head, length);
	port->stats.tx_bytes += length;
	return verdict.punt;
}

static void take_tx_chain(mv_port *port, const struct mv_chain *chain, struct punts *punts)
{
	enum mv_drop reason = MV_DROP_RING_DISABLED;

	port->stats.tx_frames++;
	if (port->rings[TX].enabled && receive_frame(port, chain, punts, &reason))
		port->stats.punts++;
	else
		port->stats.drops[reason]++;
	/* The device writes nothing into a transmitted buffer (virtio 1.2, 2.7.8.2). */
	mv_ring_take(&port->rings[TX], chain->head, 0);
}

/* Empty the ring as far as the bounds allow: true when it is empty. */
static bool drain(mv_port *port, struct punts *punts)
{
	struct mv_ring *ring = &port->rings[TX];
	struct turn turn = turn_begin();
	unsigned int n = mv_ring_available(ring);
	struct mv_chain chain;

	for (; n > 0; n--) {
		if (!punts_have_room(punts))
			return false;
		if (!mv_ring_peek(ring, ring_features(port), port->memory, MV_FROM_DRIVER, &chain))
			break;
		take_tx_chain(port, &chain, punts);
		turn.work += chain.n_descs;
		if (turn_is_over(&turn, chain.length) && n > 1)
			return false;
	}
	return true;
}

int mv_port_drain(mv_port *port, uint8_t *buffer, struct mv_punt *entries, unsigned int *n_punts)
{
	struct punts punts = { .buffer = buffer, .entries = entries };
	struct mv_ring *ring = &port->rings[TX];
	bool empty;

	*n_punts = 0;
	if (!ring->running || ring->broken)
		return MV_NEXT_NOTHING;
	if (ring->armed)
		port->stats.kicks++;
	mv_ring_refuse_kicks(ring, ring_features(port));
	empty = drain(port, &punts);
	*n_punts = punts.n;
	publish(port, ring);
	if (ring->broken)
		return MV_NEXT_NOTHING;
	if (empty && mv_ring_ask_for_kick(ring, ring_features(port)))
		return MV_NEXT_KICK;
	return MV_NEXT_CALL_AGAIN;
}

/* ---- RX: frames to the guest ---- */

int mv_port_enqueue(mv_port *port, const uint8_t *frame, size_t length)
{
	struct backlog_frame *entry;

	if (length < ETH_SIZE || length > MV_MAX_FRAME)
		return -EINVAL;
	if (!rx_is_up(port)) {
		mv_port_count_drop(port, MV_DROP_RX_RING_DOWN);
		return 0;
	}
	if (port->backlog_length == MV_BACKLOG) {
		mv_port_count_drop(port, MV_DROP_RX_BACKLOG_FULL);
		return 0;
	}
	entry = &port->backlog[(port->backlog_first + port->backlog_length) % MV_BACKLOG];
	entry->data = malloc(length);
	if (!entry->data)
		return -ENOMEM;
	memcpy(entry->data, frame, length);
	entry->length = (uint32_t)length;
	port->backlog_length++;
	return 1;
}

unsigned int mv_port_backlog(const mv_port *port)
{
	return port->backlog_length;
}

/* What became of a frame that was to be delivered. */
enum delivery {
	DELIVERED,
	NO_BUFFERS,		/* keep it: the ring is empty */
	TURN_OVER,		/* keep it: others first */
	TOO_SMALL,		/* drop it: it does not fit in what the driver gives */
	BAD_BUFFER,		/* drop it: the driver gave a buffer that is none */
	RING_BROKEN,
};

/* An RX ring while frames are moved to it. */
struct rx {
	mv_port *port;
	struct mv_ring *ring;
	struct turn turn;
	unsigned int available;	/* chains that may still be taken */
	uint32_t header;
	bool mergeable;
};

static bool rx_peek(struct rx *rx, struct mv_chain *chain)
{
	bool ok = mv_ring_peek(rx->ring, ring_features(rx->port), rx->port->memory, MV_TO_DRIVER,
			       chain);

	rx->turn.work += chain->n_descs;
	return ok;
}

static void rx_take(struct rx *rx, const struct mv_chain *chain, uint32_t written)
{
	mv_ring_take(rx->ring, chain->head, written);
	rx->available--;
}

/*
 * Look at the next chain that can hold the header. Smaller ones would block the ring for ever, so
 * they are given back empty, as are those that are no buffers at all.
 */
static enum delivery first_chain(struct rx *rx, struct mv_chain *chain)
{
	while (rx->available > 0) {
		if (!rx_peek(rx, chain))
			return RING_BROKEN;
		if (!chain->faulty && chain->length >= rx->header)
			return DELIVERED;
		rx_take(rx, chain, 0);
		if (chain->faulty)
			return BAD_BUFFER;
		if (turn_is_over(&rx->turn, 0))
			return TURN_OVER;
	}
	return NO_BUFFERS;
}

/*
 * Mergeable buffers (virtio 1.2, 5.1.6.4.1): put the rest of the frame, from `done` on, into further
 * chains, each but the last filled. *n_chains counts them, the first one included.
 */
static enum delivery more_chains(struct rx *rx, const struct backlog_frame *frame, uint32_t done,
				 uint16_t *n_chains)
{
	struct mv_chain chain;
	unsigned int n_descs = 0;
	uint32_t run;

	for (; done < frame->length; done += run, ++*n_chains) {
		if (rx->available == 0)
			return TOO_SMALL;
		if (!rx_peek(rx, &chain))
			return RING_BROKEN;
		n_descs += chain.n_descs;
		if (chain.faulty || n_descs > MV_MAX_CHAIN) {
			mv_ring_void(rx->ring, *n_chains);
			rx_take(rx, &chain, 0);
			return BAD_BUFFER;
		}
		run = mv_chain_write(&chain, 0, frame->data + done, frame->length - done);
		rx_take(rx, &chain, run);
	}
	return DELIVERED;
}

static enum delivery deliver(struct rx *rx, const struct backlog_frame *frame)
{
	struct mv_net_hdr hdr = { .num_buffers = 1 };
	struct mv_chain first;
	uint32_t done;
	enum delivery result = first_chain(rx, &first);

	if (result != DELIVERED)
		return result;
	if (!rx->mergeable && first.length < rx->header + frame->length)
		return TOO_SMALL;
	done = mv_chain_write(&first, rx->header, frame->data, frame->length);
	rx_take(rx, &first, rx->header + done);
	result = more_chains(rx, frame, done, &hdr.num_buffers);
	if (result == DELIVERED) {
		mv_chain_write(&first, 0, &hdr, rx->header);
	} else if (result != BAD_BUFFER) {
		mv_ring_untake(rx->ring, hdr.num_buffers);
		rx->available += hdr.num_buffers;
	}
	return result;
}

/* Settle the first frame of the backlog: false when it stays there. */
static bool settle(mv_port *port, enum delivery delivery)
{
	const struct backlog_frame *frame = &port->backlog[port->backlog_first];

	switch (delivery) {
	case DELIVERED:
		port->stats.rx_frames++;
		port->stats.rx_bytes += frame->length;
		break;
	case TOO_SMALL:
		mv_port_count_drop(port, MV_DROP_RX_BUFFER_TOO_SMALL);
		break;
	case BAD_BUFFER:
		mv_port_count_drop(port, MV_DROP_RX_BUFFER_INVALID);
		break;
	case NO_BUFFERS:
	case TURN_OVER:
	case RING_BROKEN:
		return false;
	}
	backlog_pop(port);
	return true;
}

/* Move frames until the backlog, the ring or the turn ends; the last frame's delivery. */
static enum delivery move_backlog(mv_port *port)
{
	struct rx rx = {
		.port = port,
		.ring = &port->rings[RX],
		.turn = turn_begin(),
		.available = mv_ring_available(&port->rings[RX]),
		.header = mv_net_hdr_size(port->features),
		.mergeable = port->features & MV_F_MRG_RXBUF,
	};
	enum delivery delivery = NO_BUFFERS;

	while (port->backlog_length > 0) {
		const struct backlog_frame *frame = &port->backlog[port->backlog_first];
		uint32_t length = frame->length;

		delivery = deliver(&rx, frame);
		if (!settle(port, delivery))
			return delivery;
		if (turn_is_over(&rx.turn, length))
			return TURN_OVER;
	}
	return delivery;
}

int mv_port_flush(mv_port *port)
{
	struct mv_ring *ring = &port->rings[RX];
	enum delivery last;

	if (!rx_is_up(port) || port->backlog_length == 0)
		return MV_NEXT_NOTHING;
	if (ring->armed)
		mv_ring_refuse_kicks(ring, ring_features(port));
	last = move_backlog(port);
	publish(port, ring);
	if (ring->broken || port->backlog_length == 0)
		return MV_NEXT_NOTHING;
	if (last == NO_BUFFERS && mv_ring_ask_for_kick(ring, ring_features(port)))
		return MV_NEXT_KICK;
	return MV_NEXT_CALL_AGAIN;
}
