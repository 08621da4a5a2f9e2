/*
 * RX: frames to the guest. They wait in the port's backlog until the driver has given buffers.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool mv_port_is_up(const mv_port *port)
{
	return __atomic_load_n(&port->up, __ATOMIC_RELAXED) != 0;
}

bool mv_rx_is_up(const struct mv_pair *pair)
{
	const struct mv_ring *ring = &pair->rings[MV_RX];

	return ring->running && ring->enabled && !ring->broken;
}

static void backlog_pop(struct mv_pair *pair)
{
	struct mv_backlog_frame *frame = pair->backlog_first;

	pair->backlog_bytes -= frame->length;
	pair->backlog_first = frame->next;
	pair->backlog_length--;
	free(frame);
}

void mv_backlog_clear(struct mv_pair *pair)
{
	while (pair->backlog_length > 0)
		backlog_pop(pair);
}

static struct mv_frame frame_of(const struct mv_backlog_frame *entry)
{
	return (struct mv_frame){
		.hdr = entry->hdr,
		.head = entry->data,
		.head_length = entry->length,
		.length = entry->length,
	};
}

/* Count a frame for the guest that was dropped, and let captures see it. */
static void drop(mv_port *port, const struct mv_frame *frame, unsigned int reason)
{
	mv_port_count_drop(port, reason);
	mv_tap_frame(port, MV_INBOUND, (int)reason, frame);
}

static void backlog_drop_first(struct mv_pair *pair, enum mv_drop reason)
{
	struct mv_frame frame = frame_of(pair->backlog_first);

	drop(pair->port, &frame, reason);
	backlog_pop(pair);
}

void mv_backlog_drop(struct mv_pair *pair, enum mv_drop reason)
{
	while (pair->backlog_length > 0)
		backlog_drop_first(pair, reason);
}

/* Keep a copy of a frame for later: 0, or the negated reason why it was dropped. */
static int backlog_add(struct mv_pair *pair, const struct mv_frame *frame)
{
	struct mv_backlog_frame *entry;
	struct mv_reader rest = frame->rest;

	if (pair->backlog_length == MV_BACKLOG ||
	    pair->backlog_bytes + frame->length > MV_BACKLOG_BYTES)
		return -MV_DROP_RX_BACKLOG_FULL;
	entry = malloc(sizeof(*entry) + frame->length);
	if (!entry)
		return -MV_DROP_NO_MEMORY;
	entry->next = NULL;
	entry->hdr = frame->hdr;
	entry->length = frame->length;
	memcpy(entry->data, frame->head, frame->head_length);
	mv_reader_read(&rest, entry->data + frame->head_length, frame->length - frame->head_length);
	if (pair->backlog_length > 0)
		pair->backlog_last->next = entry;
	else
		pair->backlog_first = entry;
	pair->backlog_last = entry;
	pair->backlog_length++;
	pair->backlog_bytes += frame->length;
	return 0;
}

int mv_port_enqueue(mv_port *port, const uint8_t *data, size_t length)
{
	struct mv_frame frame = { .head = data, .head_length = (uint32_t)length };
	struct mv_pair *pair;
	int r;

	if (length < MV_ETH_SIZE || length > MV_MAX_FRAME)
		return -EINVAL;
	frame.length = (uint32_t)length;
	pair = mv_port_choose(port, 0);
	mv_lock(pair, MV_RX);
	r = mv_rx_is_up(pair) ? backlog_add(pair, &frame) : -MV_DROP_RX_RING_DOWN;
	if (r < 0)
		drop(port, &frame, (unsigned int)-r);
	mv_unlock(pair, MV_RX);
	return r == 0;
}

unsigned int mv_port_backlog(mv_port *port)
{
	unsigned int length = 0;

	for (unsigned int i = 0; i < MV_MAX_PAIRS; i++) {
		struct mv_pair *pair = mv_port_pair(port, i);

		if (!pair)
			continue;
		mv_lock(pair, MV_RX);
		length += pair->backlog_length;
		mv_unlock(pair, MV_RX);
	}
	return length;
}

/* What became of a frame that was to be delivered. */
enum delivery {
	DELIVERED,
	NO_BUFFERS,		/* keep it: the ring is empty */
	FEW_BUFFERS,		/* keep it: it needs more of them than are there */
	TURN_OVER,		/* keep it: others first */
	TOO_SMALL,		/* drop it: it does not fit in what the driver gives */
	BAD_BUFFER,		/* drop it: the driver gave a buffer that is none */
	RING_BROKEN,
};

static struct mv_ring *ring_of(const struct mv_rx *rx)
{
	return &rx->pair->rings[MV_RX];
}

/* Whether a frame that comes now may go straight to the ring, unseen by captures. */
static void note_idle(struct mv_rx *rx)
{
	rx->idle = rx->pair->backlog_length == 0 && !ring_of(rx)->starved && mv_rx_is_up(rx->pair) &&
		   !mv_port_is_tapped(rx->port);
}

/* Chains to look at when a run begins: it may be short. */
enum { FIRST_REACH = 4 };

void mv_rx_open(struct mv_rx *rx, struct mv_pair *pair, struct mv_turn *turn)
{
	const mv_port *port = pair->port;

	rx->port = pair->port;
	rx->pair = pair;
	rx->turn = turn;
	rx->available = mv_rx_is_up(pair) ? mv_ring_available(&pair->rings[MV_RX]) : 0;
	rx->header = mv_net_hdr_size(port->features);
	rx->mergeable = port->features & MV_F_MRG_RXBUF;
	rx->reach = FIRST_REACH;
	rx->frames = 0;
	rx->bytes = 0;
	rx->ahead.n = 0;
	rx->ahead.next = 0;
	note_idle(rx);
}

static void count_delivered(struct mv_rx *rx, uint32_t length)
{
	rx->frames++;
	rx->bytes += length;
}

static void note_delivered(struct mv_rx *rx, const struct mv_frame *frame)
{
	count_delivered(rx, frame->length);
	mv_tap_frame(rx->port, MV_INBOUND, MV_NOT_DROPPED, frame);
}

void mv_rx_show(struct mv_rx *rx)
{
	struct mv_stats *stats = &rx->pair->stats;

	if (ring_of(rx)->running)
		mv_ring_show(ring_of(rx));
	mv_count(&stats->rx_frames, rx->frames);
	mv_count(&stats->rx_bytes, rx->bytes);
	rx->frames = 0;
	rx->bytes = 0;
}

static bool rx_peek(struct mv_rx *rx, struct mv_chain *chain)
{
	bool ok = mv_ring_peek(ring_of(rx), mv_port_ring_features(rx->port), rx->port->memory,
			       MV_TO_DRIVER, chain);

	mv_turn_count(rx->turn, chain->n_descs, 0);
	return ok;
}

static void rx_take(struct mv_rx *rx, uint16_t head, uint16_t slots, uint32_t written)
{
	mv_ring_take(ring_of(rx), head, slots, written);
	rx->available--;
	mv_ahead_took(&rx->ahead, slots);
}

static void rx_untake(struct mv_rx *rx, unsigned int n)
{
	mv_ring_untake(ring_of(rx), n);
	rx->available += n;
	rx->ahead.n = 0;
}

/*
 * Look at the next chain that can hold the header. Smaller ones would block the ring for ever, so
 * they are given back empty, as are those that are no buffers at all.
 */
static enum delivery first_chain(struct mv_rx *rx, struct mv_chain *chain)
{
	if (rx->available == 0) {
		/* No frame is half in the ring here, and a driver that sees what it got gives more buffers. */
		mv_ring_show(ring_of(rx));
		rx->available = mv_ring_available(ring_of(rx));
	}
	while (rx->available > 0) {
		if (!rx_peek(rx, chain))
			return RING_BROKEN;
		if (!chain->faulty && chain->length >= rx->header)
			return DELIVERED;
		rx_take(rx, chain->head, chain->slots, 0);
		if (chain->faulty)
			return BAD_BUFFER;
		if (mv_turn_is_over(rx->turn, 0))
			return TURN_OVER;
	}
	return ring_of(rx)->broken ? RING_BROKEN : NO_BUFFERS;
}

/* Write the frame from its byte `done` on into a chain, `skip` bytes into it; returns how much. */
static uint32_t write_frame(const struct mv_chain *chain, uint32_t skip,
			    const struct mv_frame *frame, struct mv_reader *rest, uint32_t done)
{
	uint64_t room = chain->length - skip;
	uint32_t length = frame->length - done, head = 0;

	if (length > room)
		length = (uint32_t)room;
	if (done < frame->head_length) {
		head = frame->head_length - done < length ? frame->head_length - done : length;
		mv_chain_write(chain, skip, frame->head + done, head);
	}
	if (length > head)
		mv_reader_copy(rest, chain, skip + head, length - head);
	return length;
}

/*
 * A frame takes more than the `n` chains that there were. A driver that uses received frames up
 * will give more; one that has never had more than these available will not.
 */
static enum delivery out_of_chains(const struct mv_rx *rx, unsigned int n)
{
	struct mv_ring *ring = ring_of(rx);

	if (ring->broken)
		return RING_BROKEN;
	if (n >= ring->most)
		return TOO_SMALL;
	ring->starved = true;
	ring->starved_at = ring->last_avail;
	return FEW_BUFFERS;
}

/* Whether all that a frame was too large for is still all there is. */
static bool still_starved(const struct mv_rx *rx)
{
	struct mv_ring *ring = ring_of(rx);

	if (ring->starved)
		ring->starved = !ring->broken && !mv_ring_goes_beyond(ring, ring->starved_at);
	return ring->starved;
}

/*
 * Mergeable buffers (virtio 1.2, 5.1.6.4.1): put the rest of the frame, from `done` on, into more
 * chains, each but the last filled. *n_chains counts them, the first one included.
 */
static enum delivery more_chains(struct mv_rx *rx, const struct mv_frame *frame,
				 struct mv_reader *rest, uint32_t done, uint16_t *n_chains)
{
	struct mv_chain chain;
	unsigned int n_descs = 0;
	uint32_t run;

	for (; done < frame->length; done += run, ++*n_chains) {
		if (rx->available == 0)
			rx->available = mv_ring_available(ring_of(rx));
		if (rx->available == 0)
			return out_of_chains(rx, *n_chains);
		if (!rx_peek(rx, &chain))
			return RING_BROKEN;
		n_descs += chain.n_descs;
		if (chain.faulty || n_descs > MV_MAX_CHAIN) {
			mv_ring_void(ring_of(rx), *n_chains);
			rx_take(rx, chain.head, chain.slots, 0);
			return BAD_BUFFER;
		}
		run = write_frame(&chain, 0, frame, rest, done);
		rx_take(rx, chain.head, chain.slots, run);
	}
	return DELIVERED;
}

static enum delivery deliver(struct mv_rx *rx, const struct mv_frame *frame)
{
	struct mv_net_hdr hdr = frame->hdr;
	struct mv_reader rest = frame->rest;
	struct mv_chain first;
	uint32_t done;
	enum delivery result;

	if (still_starved(rx))
		return FEW_BUFFERS;
	result = first_chain(rx, &first);
	if (result != DELIVERED)
		return result;
	if (!rx->mergeable && first.length < rx->header + frame->length)
		return TOO_SMALL;
	hdr.num_buffers = 1;
	done = write_frame(&first, rx->header, frame, &rest, 0);
	rx_take(rx, first.head, first.slots, rx->header + done);
	result = more_chains(rx, frame, &rest, done, &hdr.num_buffers);
	if (result == DELIVERED) {
		mv_chain_write(&first, 0, &hdr, rx->header);
	} else if (result != BAD_BUFFER) {
		rx_untake(rx, hdr.num_buffers);
	}
	return result;
}

/* Why a frame was lost; 0: it was not. */
static int lost(enum delivery delivery)
{
	switch (delivery) {
	case TOO_SMALL:
		return -MV_DROP_RX_BUFFER_TOO_SMALL;
	case BAD_BUFFER:
		return -MV_DROP_RX_BUFFER_INVALID;
	default:
		return 0;
	}
}

/* Move frames until the backlog, the ring or the turn ends; the last frame's delivery. */
static enum delivery move_backlog(struct mv_rx *rx)
{
	struct mv_pair *pair = rx->pair;
	enum delivery delivery = NO_BUFFERS;

	while (pair->backlog_length > 0) {
		struct mv_frame frame = frame_of(pair->backlog_first);

		delivery = deliver(rx, &frame);
		if (delivery == DELIVERED)
			note_delivered(rx, &frame);
		else if (lost(delivery))
			drop(rx->port, &frame, (unsigned int)-lost(delivery));
		else
			return delivery;
		backlog_pop(pair);
		if (mv_turn_is_over(rx->turn, frame.length))
			return TURN_OVER;
	}
	return delivery;
}

static int push(struct mv_rx *rx, const struct mv_frame *frame)
{
	struct mv_pair *pair = rx->pair;
	enum delivery delivery = NO_BUFFERS;

	/* In their order: what waits goes first. */
	if (mv_rx_is_up(pair) && !rx->turn->overdue) {
		if (pair->backlog_length > 0)
			move_backlog(rx);
		if (pair->backlog_length == 0)
			delivery = deliver(rx, frame);
	}
	if (delivery == DELIVERED) {
		note_delivered(rx, frame);
		return 0;
	}
	if (lost(delivery))
		return lost(delivery);
	return mv_rx_is_up(pair) ? backlog_add(pair, frame) : -MV_DROP_RX_RING_DOWN;
}

const struct mv_slot *mv_rx_slot(struct mv_rx *rx)
{
	unsigned int n;

	if (!rx->idle)
		return NULL;
	if (rx->ahead.next >= rx->ahead.n) {
		if (rx->available == 0)
			rx->available = mv_ring_available(ring_of(rx));
		n = rx->available < rx->reach ? rx->available : rx->reach;
		mv_ring_look_ahead(ring_of(rx), rx->port->memory, MV_TO_DRIVER, n, &rx->ahead);
		rx->reach = MV_AHEAD;
	}
	return mv_ahead_next(&rx->ahead);
}

void mv_rx_take_slot(struct mv_rx *rx, const struct mv_slot *slot, uint32_t length)
{
	rx_take(rx, slot->head, 1, rx->header + length);
	count_delivered(rx, length);
}

/* What nearly all frames are: one that fits into the one descriptor that the driver has next. */
static bool deliver_to_slot(struct mv_rx *rx, const struct mv_frame *frame)
{
	const struct mv_slot *slot = mv_rx_slot(rx);
	struct mv_net_hdr hdr = frame->hdr;
	struct mv_reader rest = frame->rest;
	uint32_t head = frame->head_length;
	uint8_t *into;

	if (!slot || slot->length < rx->header + frame->length)
		return false;
	hdr.num_buffers = 1;
	into = slot->host + rx->header;
	mv_store_hdr(slot->host, &hdr, rx->header);
	mv_copy_short(into, frame->head, head);
	mv_reader_move(&rest, into + head, frame->length - head);
	mv_rx_take_slot(rx, slot, frame->length);
	return true;
}

int mv_rx_push(struct mv_rx *rx, const struct mv_frame *frame)
{
	int r;

	mv_turn_is_over(rx->turn, 0);
	if (!rx->turn->overdue && deliver_to_slot(rx, frame))
		return 0;
	r = push(rx, frame);
	if (r < 0)
		mv_tap_frame(rx->port, MV_INBOUND, -r, frame);
	note_idle(rx);
	return r;
}

/* Frames are left: ask the driver for what they wait for. */
static int ask_for_buffers(struct mv_pair *pair, enum delivery last)
{
	struct mv_ring *ring = &pair->rings[MV_RX];
	struct mv_ring_features features = mv_port_ring_features(pair->port);

	if (last == NO_BUFFERS && mv_ring_ask_for_kick(ring, features, ring->last_avail))
		return MV_NEXT_KICK;
	if (last == FEW_BUFFERS && mv_ring_ask_for_kick(ring, features, ring->starved_at))
		return MV_NEXT_MORE_BUFFERS;
	return MV_NEXT_CALL_AGAIN;
}

/* Look for the first buffers of a pair that is up: whether there are any, so that frames may come. */
static bool find_first_buffers(struct mv_pair *pair)
{
	struct mv_ring *ring = &pair->rings[MV_RX];

	pair->fed = mv_ring_available(ring) > 0;
	mv_rx_note_up(pair);
	return pair->fed;
}

static int flush(struct mv_pair *pair)
{
	struct mv_ring *ring = &pair->rings[MV_RX];
	struct mv_ring_features features = mv_port_ring_features(pair->port);
	struct mv_turn turn = mv_turn_begin();
	struct mv_rx rx;
	enum delivery last;

	if (!mv_rx_is_up(pair))
		return MV_NEXT_NOTHING;
	if (!pair->fed && !find_first_buffers(pair))
		return ring->broken ? MV_NEXT_NOTHING : ask_for_buffers(pair, NO_BUFFERS);
	/* Also with nothing left to move: who sends the next frame has to see that nobody waits. */
	if (ring->armed)
		mv_ring_refuse_kicks(ring, features);
	if (pair->backlog_length == 0)
		return MV_NEXT_NOTHING;
	mv_rx_open(&rx, pair, &turn);
	last = move_backlog(&rx);
	mv_rx_show(&rx);
	mv_pair_publish(pair, MV_RX);
	if (ring->broken || pair->backlog_length == 0)
		return MV_NEXT_NOTHING;
	return ask_for_buffers(pair, last);
}

int mv_port_flush(mv_port *port, unsigned int index)
{
	struct mv_pair *pair = index < MV_MAX_PAIRS ? mv_port_pair(port, index) : NULL;
	int next;

	if (!pair)
		return MV_NEXT_NOTHING;
	mv_lock(pair, MV_RX);
	next = flush(pair);
	mv_unlock(pair, MV_RX);
	return next;
}

void mv_port_drop_first(mv_port *port, unsigned int index)
{
	struct mv_pair *pair = index < MV_MAX_PAIRS ? mv_port_pair(port, index) : NULL;

	if (!pair)
		return;
	mv_lock(pair, MV_RX);
	/* Not if a poller has delivered it meanwhile. */
	if (pair->rings[MV_RX].starved && pair->backlog_length > 0) {
		pair->rings[MV_RX].starved = false;
		backlog_drop_first(pair, MV_DROP_RX_BUFFER_TOO_SMALL);
	}
	mv_unlock(pair, MV_RX);
}
