/*
 * RX: frames to the guest. They wait in the port's backlog until the driver has given buffers.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool mv_rx_is_up(const mv_port *port)
{
	const struct mv_ring *ring = &port->rings[MV_RX];

	return ring->running && ring->enabled && !ring->broken;
}

static void backlog_pop(mv_port *port)
{
	free(port->backlog[port->backlog_first].data);
	port->backlog_first = (port->backlog_first + 1) % MV_BACKLOG;
	port->backlog_length--;
}

void mv_backlog_clear(mv_port *port)
{
	while (port->backlog_length > 0)
		backlog_pop(port);
}

int mv_port_enqueue(mv_port *port, const uint8_t *frame, size_t length)
{
	struct mv_backlog_frame *entry;

	if (length < MV_ETH_SIZE || length > MV_MAX_FRAME)
		return -EINVAL;
	if (!mv_rx_is_up(port)) {
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
	struct mv_turn turn;
	unsigned int available;	/* chains that may still be taken */
	uint32_t header;
	bool mergeable;
};

static bool rx_peek(struct rx *rx, struct mv_chain *chain)
{
	bool ok = mv_ring_peek(rx->ring, mv_port_ring_features(rx->port), rx->port->memory, MV_TO_DRIVER,
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
		if (mv_turn_is_over(&rx->turn, 0))
			return TURN_OVER;
	}
	return NO_BUFFERS;
}

/*
 * Mergeable buffers (virtio 1.2, 5.1.6.4.1): put the rest of the frame, from `done` on, into more
 * chains, each but the last filled. *n_chains counts them, the first one included.
 */
static enum delivery more_chains(struct rx *rx, const struct mv_backlog_frame *frame, uint32_t done,
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

static enum delivery deliver(struct rx *rx, const struct mv_backlog_frame *frame)
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
	const struct mv_backlog_frame *frame = &port->backlog[port->backlog_first];

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
		.ring = &port->rings[MV_RX],
		.turn = mv_turn_begin(),
		.available = mv_ring_available(&port->rings[MV_RX]),
		.header = mv_net_hdr_size(port->features),
		.mergeable = port->features & MV_F_MRG_RXBUF,
	};
	enum delivery delivery = NO_BUFFERS;

	while (port->backlog_length > 0) {
		const struct mv_backlog_frame *frame = &port->backlog[port->backlog_first];
		uint32_t length = frame->length;

		delivery = deliver(&rx, frame);
		if (!settle(port, delivery))
			return delivery;
		if (mv_turn_is_over(&rx.turn, length))
			return TURN_OVER;
	}
	return delivery;
}

int mv_port_flush(mv_port *port)
{
	struct mv_ring *ring = &port->rings[MV_RX];
	enum delivery last;

	if (!mv_rx_is_up(port) || port->backlog_length == 0)
		return MV_NEXT_NOTHING;
	if (ring->armed)
		mv_ring_refuse_kicks(ring, mv_port_ring_features(port));
	last = move_backlog(port);
	mv_port_publish(port, ring);
	if (ring->broken || port->backlog_length == 0)
		return MV_NEXT_NOTHING;
	if (last == NO_BUFFERS && mv_ring_ask_for_kick(ring, mv_port_ring_features(port)))
		return MV_NEXT_KICK;
	return MV_NEXT_CALL_AGAIN;
}
