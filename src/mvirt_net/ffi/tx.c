/*
 * TX: frames from the guest. Each is judged from a private copy of its first bytes, and then sent on
 * to another NIC, copied for a service, or dropped.
 */
#include "core.h"

#include <string.h>

enum {
	/* As much of a packet as an ICMP error quotes (RFC 4443, 2.4 (c): 1280 bytes with headers). */
	QUOTED = MV_ETH_SIZE + 1280 - MV_IPV6_SIZE - 8,
	/* Receivers: a guest may rewrite a frame that mv_express() left to the general way. */
	TOUCHED_BY_ONE = 2,
	/* Done before both drivers see it; frames of Ethernet's usual size are seen MV_AHEAD at a time. */
	SHOW_BYTES = MV_AHEAD * 1536,
};

/* ---- the slow path ---- */

static bool has_room(const struct mv_drain *drain)
{
	const struct mv_drained *result = drain->result;

	return result->n_punts < MV_PUNT_FRAMES &&
	       result->n_woken + drain->n_touched + TOUCHED_BY_ONE <= MV_MAX_WOKEN &&
	       MV_PUNT_BYTES - drain->used >= MV_MAX_FRAME;
}

/*
 * Copy the first `length` bytes of a frame: those that were judged from their private copy, the
 * rest from the guest.
 */
static struct mv_punt *add_punt(struct mv_drain *drain, enum mv_punt_kind kind,
				const struct mv_packet *packet, uint32_t length)
{
	uint8_t *to = drain->buffer + drain->used;
	uint32_t judged = length < packet->head_length ? length : packet->head_length;
	struct mv_punt *punt = &drain->result->punts[drain->result->n_punts++];

	memcpy(to, packet->head, judged);
	mv_chain_read(packet->chain, packet->skip + judged, to + judged, length - judged);
	*punt = (struct mv_punt){
		.kind = kind, .offset = (uint32_t)drain->used, .length = length,
	};
	drain->used += length;
	return punt;
}

/* A frame for a service, which wants its checksum whole. */
static void add_service_punt(struct mv_drain *drain, enum mv_punt_kind kind,
			     const struct mv_packet *packet)
{
	uint8_t *frame = drain->buffer + drain->used;
	uint32_t l4 = packet->l4;

	add_punt(drain, kind, packet, packet->length);
	if (packet->offload.flags)
		mv_offload_fill(frame, packet->family, &packet->offload, packet->protocol,
				packet->length - l4, (struct mv_reader){ 0 }, packet->length - l4);
}

/* A packet that was dropped, for the message to its sender. */
static void add_error_punt(struct mv_drain *drain, const struct mv_verdict *verdict,
			   const struct mv_packet *packet)
{
	uint32_t quoted = packet->length < QUOTED ? packet->length : QUOTED;
	struct mv_punt *punt;

	if (!mv_may_punt(&drain->port->limits, MV_PUNT_ICMP_ERROR, quoted, drain->now))
		return;
	punt = add_punt(drain, MV_PUNT_ICMP_ERROR, packet, quoted);
	punt->error = verdict->error;
	punt->mtu = verdict->mtu;
	mv_count(&drain->pair->stats.icmp_errors, 1);
}

/* ---- to other NICs ---- */

static void touch(struct mv_drain *drain, struct mv_pair *to)
{
	for (unsigned int i = 0; i < drain->n_touched; i++)
		if (drain->touched[i] == to)
			return;
	drain->touched[drain->n_touched++] = to;
}

static void let_receiver_go(struct mv_drain *drain)
{
	if (!drain->rx.pair)
		return;
	mv_rx_show(&drain->rx);
	mv_unlock(drain->rx.pair, MV_RX);
	drain->rx.pair = NULL;
}

void mv_turn_to_receiver(struct mv_drain *drain, struct mv_pair *to)
{
	if (drain->rx.pair == to)
		return;
	let_receiver_go(drain);
	touch(drain, to);
	if (!mv_lock(to, MV_RX))
		mv_turn_has_waited(&drain->turn);
	mv_rx_open(&drain->rx, to, &drain->turn);
}

/* Like choose_pair() of express.c, so that all packets of a flow stay in order. */
static struct mv_pair *choose_pair(mv_port *to, struct mv_packet *packet)
{
	struct mv_flow_key key = mv_flow_of(packet);
	uint32_t ports = 0;

	if (packet->fragment)
		return mv_port_choose(to, mv_flow_hash(&key, 0, 0));
	if (mv_has_ports(packet->protocol) && mv_packet_need(packet, packet->l4 + 4))
		ports = mv_load32(packet->head + packet->l4);
	return mv_port_choose(to, mv_flow_hash(&key, packet->protocol, ports));
}

static void forward(struct mv_drain *drain, struct mv_packet *packet,
		    const struct mv_verdict *verdict)
{
	mv_port *to = verdict->to;

	mv_turn_to_receiver(drain, mv_port_is_simple(to) ? &to->first : choose_pair(to, packet));
	mv_forward(&drain->rx, packet, verdict->mtu);
	drain->routed++;
}

/* Note a receiver whose task has something to do. */
static void wake(struct mv_drained *result, const struct mv_pair *pair)
{
	uint32_t tag = pair->port->tag;

	for (unsigned int i = 0; i < result->n_woken; i++)
		if (result->woken[i].tag == tag && result->woken[i].pair == pair->index)
			return;
	result->woken[result->n_woken++] = (struct mv_woken){ .tag = tag, .pair = pair->index };
}

/* Publish what a receiver, which is locked, has got, and note it if its task has something to do. */
static void settle(struct mv_drained *result, struct mv_pair *to)
{
	const struct mv_ring *ring = &to->rings[MV_RX];

	if (ring->running)
		mv_pair_publish(to, MV_RX);
	if (ring->broken || (to->backlog_length > 0 && !ring->armed))
		wake(result, to);
}

/* Once for each receiver. To lock the last one again could take somebody else's turn. */
static void settle_receivers(struct mv_drain *drain)
{
	struct mv_pair *last = drain->rx.pair;

	if (last)
		settle(drain->result, last);
	let_receiver_go(drain);
	for (unsigned int i = 0; i < drain->n_touched; i++) {
		struct mv_pair *to = drain->touched[i];

		if (to == last)
			continue;
		mv_lock(to, MV_RX);
		settle(drain->result, to);
		mv_unlock(to, MV_RX);
	}
}

/* ---- frames ---- */

/* The frame in a chain, its header apart; or the reason why there is none, negated. */
static int open_frame(const mv_port *port, const struct mv_chain *chain, struct mv_packet *packet)
{
	uint32_t header = mv_net_hdr_size(port->features);

	if (chain->faulty)
		return -MV_DROP_TX_BUFFER_INVALID;
	if (chain->length < header + MV_ETH_SIZE)
		return -MV_DROP_TX_TOO_SHORT;
	if (chain->length > header + MV_MAX_FRAME)
		return -MV_DROP_TX_TOO_LONG;
	mv_packet_begin(packet, chain, header);
	return 0;
}

/* A chain that is dropped without a look at the frame in it, of which captures see what there is. */
static void drop_chain(mv_port *port, const struct mv_chain *chain, enum mv_drop reason)
{
	uint32_t header = mv_net_hdr_size(port->features);
	uint64_t length = chain->faulty || chain->length < header ? 0 : chain->length - header;
	struct mv_frame frame = { .length = length < UINT32_MAX ? (uint32_t)length : UINT32_MAX };

	mv_port_count_drop(port, reason);
	if (!mv_port_is_tapped(port))
		return;
	if (length > 0)
		frame.rest = mv_reader_at(chain, header);
	mv_tap_frame(port, MV_OUTBOUND, (int)reason, &frame);
}

/* Let captures see a frame of so many bytes that was judged; those for services when they are done. */
static void record_judged(mv_port *port, const struct mv_packet *packet, uint32_t length,
			  const struct mv_verdict *verdict)
{
	struct mv_frame frame = {
		.head = packet->head,
		.head_length = packet->head_length,
		.rest = mv_reader_at(packet->chain, packet->skip + packet->head_length),
		.length = length,
	};

	if (verdict->action != MV_PUNT)
		mv_tap_frame(port, MV_OUTBOUND,
			     verdict->action == MV_DROP ? (int)verdict->value : MV_NOT_DROPPED, &frame);
}

/* Where a frame goes, and whether the services have time for it if that is to them. */
static struct mv_verdict judge(struct mv_drain *drain, struct mv_packet *packet)
{
	struct mv_verdict verdict = mv_classify(drain->pair, packet);

	if (verdict.action != MV_PUNT)
		return verdict;
	mv_count(&drain->pair->stats.punts, 1);
	if (mv_may_punt(&drain->port->limits, (enum mv_punt_kind)verdict.value, packet->length,
			drain->now))
		return verdict;
	return (struct mv_verdict){ .action = MV_DROP, .value = MV_DROP_PUNT_LIMIT };
}

static void receive_frame(struct mv_drain *drain, const struct mv_chain *chain)
{
	mv_port *port = drain->port;
	struct mv_packet packet;
	struct mv_verdict verdict;
	uint32_t length;
	int r = open_frame(port, chain, &packet);

	if (r < 0) {
		drop_chain(port, chain, (enum mv_drop)-r);
		return;
	}
	length = packet.length;
	drain->bytes += length;
	verdict = judge(drain, &packet);
	if (mv_port_is_tapped(port))
		record_judged(port, &packet, length, &verdict);
	switch (verdict.action) {
	case MV_FORWARD:
		forward(drain, &packet, &verdict);
		break;
	case MV_PUNT:
		add_service_punt(drain, (enum mv_punt_kind)verdict.value, &packet);
		break;
	case MV_DROP:
		mv_port_count_drop(port, verdict.value);
		if (verdict.tell)
			add_error_punt(drain, &verdict, &packet);
		break;
	}
}

/* The chain of one descriptor that a slot is. */
static void chain_of(const struct mv_slot *slot, struct mv_chain *chain)
{
	chain->head = slot->head;
	chain->slots = 1;
	chain->faulty = false;
	chain->n_descs = 1;
	chain->n_segments = 1;
	chain->length = slot->length;
	chain->segments[0].host = slot->host;
	chain->segments[0].length = slot->length;
}

/* Deal with the ring's next chain, of which *slot may know all; its slots; 0: the ring is broken. */
static uint16_t receive_chain(struct mv_drain *drain, const struct mv_slot *slot)
{
	mv_port *port = drain->port;
	struct mv_ring *ring = &drain->pair->rings[MV_TX];
	struct mv_chain chain;

	if (slot)
		chain_of(slot, &chain);
	else if (!mv_ring_peek(ring, mv_port_ring_features(port), port->memory, MV_FROM_DRIVER, &chain))
		return 0;
	if (ring->enabled)
		receive_frame(drain, &chain);
	else
		drop_chain(port, &chain, MV_DROP_RING_DISABLED);
	mv_turn_count(&drain->turn, chain.n_descs, chain.length);
	/* The device writes nothing into a transmitted buffer (virtio 1.2, 2.7.8.2). */
	mv_ring_take(ring, chain.head, chain.slots, 0);
	return chain.slots;
}

/* The same for one that goes by express. */
static bool receive_express(struct mv_drain *drain, const struct mv_slot *slot)
{
	if (!slot || !mv_express(drain, slot))
		return false;
	mv_turn_count(&drain->turn, 0, slot->length);
	mv_ring_take(&drain->pair->rings[MV_TX], slot->head, 1, 0);
	return true;
}

/*
 * Let both drivers go on with what has been done so far, and count it: once a batch, and more often with
 * large frames. (DPDK, 64 and 1500 bytes: after each frame, split rings 1.06 and 1.15, packed ones 1.24
 * and 1.32; at the end of the turn, for which drivers wait then, 1.04 and 1.32, 1.03 and 1.19.)
 */
static void show_progress(struct mv_drain *drain)
{
	struct mv_stats *stats = &drain->pair->stats;

	if (drain->rx.pair)
		mv_rx_show(&drain->rx);
	mv_ring_show(&drain->pair->rings[MV_TX]);
	mv_count(&stats->tx_frames, drain->frames);
	mv_count(&stats->tx_bytes, drain->bytes);
	mv_count(&stats->routed, drain->routed);
	drain->frames = 0;
	drain->bytes = 0;
	drain->routed = 0;
	drain->shown = drain->turn.bytes;
}

/*
 * Before more is done: who waits for the receiver has it next. The drain of another ring that sends to
 * several waits at each turn to this one, and so do all rings of its thread.
 */
static void give_way(struct mv_drain *drain)
{
	if (drain->rx.pair && mv_lock_is_wanted(drain->rx.pair, MV_RX))
		let_receiver_go(drain);
}

/* Take the next n chains as far as the bounds allow: true if all were taken, or the ring is broken. */
static bool drain_batch(struct mv_drain *drain, unsigned int n)
{
	mv_port *port = drain->port;
	struct mv_ring *ring = &drain->pair->rings[MV_TX];
	struct mv_ahead ahead;

	give_way(drain);
	mv_ring_look_ahead(ring, port->memory, MV_FROM_DRIVER, n, &ahead);
	for (; n > 0; n--) {
		const struct mv_slot *slot = mv_ahead_next(&ahead);
		uint16_t slots = 1;

		if (!has_room(drain))
			return false;
		if (!receive_express(drain, slot))
			slots = receive_chain(drain, slot);
		if (slots == 0)
			return true;
		mv_ahead_took(&ahead, slots);
		drain->frames++;
		if (mv_turn_is_over(&drain->turn, 0))
			return n == 1 && mv_ring_available(ring) == 0;
		if (drain->turn.bytes - drain->shown >= SHOW_BYTES)
			show_progress(drain);
	}
	return true;
}

/* Empty the ring as far as the bounds allow: true when it is empty or broken. */
static bool drain_ring(struct mv_drain *drain)
{
	struct mv_ring *ring = &drain->pair->rings[MV_TX];
	unsigned int n;
	bool done = true;

	while (done && !drain->turn.over && !ring->broken && (n = mv_ring_available(ring)) > 0) {
		done = drain_batch(drain, n < MV_AHEAD ? n : MV_AHEAD);
		show_progress(drain);
	}
	return done;
}

static int drain_port(struct mv_drain *drain)
{
	mv_port *port = drain->port;
	struct mv_ring *ring = &drain->pair->rings[MV_TX];
	bool empty;

	if (!ring->running || ring->broken)
		return MV_NEXT_NOTHING;
	if (ring->armed)
		mv_count(&drain->pair->stats.kicks, 1);
	mv_ring_refuse_kicks(ring, mv_port_ring_features(port));
	drain->turn = mv_turn_begin();
	drain->express = ring->enabled && !mv_port_is_tapped(port) &&
			 mv_net_hdr_size(port->features) == sizeof(struct mv_net_hdr);
	empty = drain_ring(drain);
	settle_receivers(drain);
	mv_pair_publish(drain->pair, MV_TX);
	if (ring->broken)
		return MV_NEXT_NOTHING;
	if (empty && !drain->polled &&
	    mv_ring_ask_for_kick(ring, mv_port_ring_features(port), ring->last_avail))
		return MV_NEXT_KICK;
	return MV_NEXT_CALL_AGAIN;
}

/* Not all of struct mv_drain is worth clearing. */
static void begin_drain(struct mv_drain *drain, struct mv_pair *pair, bool polled, uint64_t now,
			uint8_t *buffer, struct mv_drained *drained)
{
	drain->port = pair->port;
	drain->pair = pair;
	drain->polled = polled;
	drain->now = now;
	drain->buffer = buffer;
	drain->used = 0;
	drain->result = drained;
	drain->rx.pair = NULL;
	drain->n_touched = 0;
	drain->shown = 0;
	drain->frames = 0;
	drain->bytes = 0;
	drain->routed = 0;
}

int mv_port_drain(mv_worker *worker, mv_port *port, unsigned int index, uint64_t now,
		  uint8_t *buffer, struct mv_drained *drained)
{
	struct mv_pair *pair = index < MV_MAX_PAIRS ? mv_port_pair(port, index) : NULL;
	struct mv_drain drain;
	int next;

	drained->n_punts = 0;
	drained->n_woken = 0;
	if (!pair)
		return MV_NEXT_NOTHING;
	begin_drain(&drain, pair, false, now, buffer, drained);
	mv_worker_begin(worker);
	mv_lock(pair, MV_TX);
	next = drain_port(&drain);
	mv_unlock(pair, MV_TX);
	mv_worker_end(worker);
	return next;
}

static enum mv_poll poll_port(struct mv_drain *drain)
{
	struct mv_ring *ring = &drain->pair->rings[MV_TX];

	if (!ring->running || ring->broken)
		return MV_POLL_DOWN;
	if (mv_ring_available(ring) == 0 && !ring->broken) {
		mv_ring_refuse_kicks(ring, mv_port_ring_features(drain->port));
		return MV_POLL_IDLE;
	}
	if (!has_room(drain))
		return MV_POLL_FULL;
	return drain_port(drain) == MV_NEXT_NOTHING ? MV_POLL_DOWN : MV_POLL_BUSY;
}

enum mv_poll mv_port_poll(mv_worker *worker, mv_port *port, unsigned int index, uint64_t now,
			  uint8_t *buffer, struct mv_drained *drained)
{
	struct mv_pair *pair = index < MV_MAX_PAIRS ? mv_port_pair(port, index) : NULL;
	struct mv_drain drain;
	enum mv_poll result;

	if (!pair)
		return MV_POLL_DOWN;
	begin_drain(&drain, pair, true, now, buffer, drained);
	if (drained->n_punts > 0) {
		const struct mv_punt *last = &drained->punts[drained->n_punts - 1];

		drain.used = last->offset + last->length;
	}
	mv_worker_begin(worker);
	mv_lock(pair, MV_TX);
	result = poll_port(&drain);
	mv_unlock(pair, MV_TX);
	mv_worker_end(worker);
	return result;
}
