/*
 * TX: frames from the guest. Each is judged from a private copy of its first bytes and then copied
 * for a service or dropped.
 */
#include "core.h"

#include <string.h>

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
	if (chain->length < header + MV_ETH_SIZE)
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
	if (port->rings[MV_TX].enabled && receive_frame(port, chain, punts, &reason))
		port->stats.punts++;
	else
		port->stats.drops[reason]++;
	/* The device writes nothing into a transmitted buffer (virtio 1.2, 2.7.8.2). */
	mv_ring_take(&port->rings[MV_TX], chain->head, 0);
}

/* Empty the ring as far as the bounds allow: true when it is empty. */
static bool drain(mv_port *port, struct punts *punts)
{
	struct mv_ring *ring = &port->rings[MV_TX];
	struct mv_turn turn = mv_turn_begin();
	unsigned int n = mv_ring_available(ring);
	struct mv_chain chain;

	for (; n > 0; n--) {
		if (!punts_have_room(punts))
			return false;
		if (!mv_ring_peek(ring, mv_port_ring_features(port), port->memory, MV_FROM_DRIVER, &chain))
			break;
		take_tx_chain(port, &chain, punts);
		turn.work += chain.n_descs;
		if (mv_turn_is_over(&turn, chain.length) && n > 1)
			return false;
	}
	return true;
}

int mv_port_drain(mv_port *port, uint8_t *buffer, struct mv_punt *entries, unsigned int *n_punts)
{
	struct punts punts = { .buffer = buffer, .entries = entries };
	struct mv_ring *ring = &port->rings[MV_TX];
	bool empty;

	*n_punts = 0;
	if (!ring->running || ring->broken)
		return MV_NEXT_NOTHING;
	if (ring->armed)
		port->stats.kicks++;
	mv_ring_refuse_kicks(ring, mv_port_ring_features(port));
	empty = drain(port, &punts);
	*n_punts = punts.n;
	mv_port_publish(port, ring);
	if (ring->broken)
		return MV_NEXT_NOTHING;
	if (empty && mv_ring_ask_for_kick(ring, mv_port_ring_features(port)))
		return MV_NEXT_KICK;
	return MV_NEXT_CALL_AGAIN;
}
