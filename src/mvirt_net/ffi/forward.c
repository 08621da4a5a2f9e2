/*
 * From one NIC to another: the packet as its receiver can take it.
 *
 * What a receiver has not agreed to is done here for it. Without the feature for this kind of
 * segmentation it gets segments, without GUEST_CSUM whole checksums, and an IPv4 packet that is too
 * large for it comes in fragments. All of these are the same loop: a header, private and patched
 * for each piece, in front of a part of the payload, which is copied once, from the sender's memory
 * into the receiver's.
 */
#include "core.h"

#include <string.h>

enum {
	IPV4_MORE_FRAGMENTS = 0x2000,
	FRAGMENT_UNIT = 8,	/* bytes (RFC 791, 3.1) */

	OPTION_END = 0,
	OPTION_NO_OPERATION = 1,
	OPTION_COPIED = 0x80,

	TCP_SEQUENCE = 4,
	TCP_FLAGS = 13,
	TCP_FIN = 0x01,
	TCP_PSH = 0x08,
	TCP_CWR = 0x80,
};

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)mv_get16(p) << 16 | mv_get16(p + 2);
}

static void put32(uint8_t *p, uint32_t value)
{
	mv_put16(p, value >> 16);
	mv_put16(p + 2, value & 0xffff);
}

static void fill_ipv4_checksum(uint8_t *ip)
{
	struct mv_sum sum = { 0 };
	uint16_t checksum;

	mv_put16(ip + 10, 0);
	mv_sum_add(&sum, ip, (ip[0] & 15U) * 4);
	checksum = mv_sum_finish(&sum);
	memcpy(ip + 10, &checksum, sizeof(checksum));
}

static void rewrite(struct mv_packet *packet, const mv_port *to)
{
	uint8_t *ip = mv_packet_ip(packet);

	memcpy(packet->head, to->mac, 6);
	memcpy(packet->head + 6, to->gateway_mac, 6);
	if (packet->family == MV_IPV6) {
		ip[7]--;
		return;
	}
	ip[8]--;
	mv_put16(ip + 10, mv_ipv4_sum_of_hop(mv_get16(ip + 10)));
}

static struct mv_reader payload_of(const struct mv_packet *packet, uint32_t header)
{
	return mv_reader_at(packet->chain, packet->skip + header);
}

/* ---- whole packets ---- */

static void fill_checksum(struct mv_packet *packet)
{
	uint32_t l4 = packet->l4;

	if (packet->rerouted)
		mv_offload_finish(packet->head, &packet->offload, packet->protocol,
				  packet->head_length - l4, payload_of(packet, packet->head_length),
				  packet->length - l4);
	else
		mv_offload_fill(packet->head, packet->family, &packet->offload, packet->protocol,
				packet->head_length - l4, payload_of(packet, packet->head_length),
				packet->length - l4);
	packet->offload = (struct mv_net_hdr){ 0 };
}

static void forward_whole(struct mv_rx *to, struct mv_packet *packet)
{
	struct mv_frame frame = {
		.head = packet->head,
		.head_length = packet->head_length,
		.rest = payload_of(packet, packet->head_length),
		.length = packet->length,
	};
	int r;

	if (packet->offload.flags && !(to->port->features & MV_F_GUEST_CSUM))
		fill_checksum(packet);
	frame.hdr = packet->offload;
	r = mv_rx_push(to, &frame);
	if (r < 0)
		mv_port_count_drop(to->port, (unsigned int)-r);
}

/* ---- pieces ---- */

struct piece {
	uint32_t offset;	/* of its payload in the packet's payload */
	uint32_t length;	/* of its payload */
	bool last;
};

/*
 * A packet was lost but for the pieces that went before: `left` bytes of payload, in pieces of `room`,
 * the last of them of up to `last`. Where one piece finds no place the next one would not either, and
 * trying would let two guests make any amount of work of one packet.
 */
static void drop_rest(struct mv_rx *to, int r, uint32_t left, uint32_t room, uint32_t last)
{
	uint32_t before_last = left > last ? (left - last + room - 1) / room : 0;

	mv_count_shared(&to->pair->stats.drops[-r], before_last + 1);
}

/* ---- segments ---- */

static void patch_ip(uint8_t *head, enum mv_family family, uint32_t length, unsigned int number)
{
	uint8_t *ip = head + MV_ETH_SIZE;

	if (family == MV_IPV6) {
		mv_put16(ip + 4, length - MV_ETH_SIZE - MV_IPV6_SIZE);
		return;
	}
	mv_put16(ip + 2, length - MV_ETH_SIZE);
	mv_put16(ip + 4, mv_get16(ip + 4) + number);
	fill_ipv4_checksum(ip);
}

static void patch_transport(uint8_t *l4, const struct mv_packet *packet, const struct piece *piece)
{
	if (packet->protocol == MV_PROTO_UDP) {
		mv_put16(l4 + MV_UDP_LENGTH, MV_UDP_SIZE + piece->length);
		return;
	}
	put32(l4 + TCP_SEQUENCE, get32(l4 + TCP_SEQUENCE) + piece->offset);
	if (piece->offset > 0)
		l4[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
	if (!piece->last)
		l4[TCP_FLAGS] &= (uint8_t)~(TCP_FIN | TCP_PSH);
}

/* One segment, its payload read from where `payload` has got to. */
static int push_segment(struct mv_rx *to, const struct mv_packet *packet,
			const struct piece *piece, unsigned int number,
			const struct mv_reader *payload)
{
	uint32_t header = packet->payload, l4 = packet->l4;
	uint8_t head[MV_HEAD];
	struct mv_frame frame = {
		.head = head,
		.head_length = header,
		.rest = *payload,
		.length = header + piece->length,
	};

	memcpy(head, packet->head, header);
	patch_ip(head, packet->family, frame.length, number);
	patch_transport(head + l4, packet, piece);
	if (to->port->features & MV_F_GUEST_CSUM) {
		frame.hdr = packet->offload;
		frame.hdr.gso_type = MV_GSO_NONE;
		frame.hdr.gso_size = 0;
		frame.hdr.hdr_len = 0;
		mv_offload_prepare(head, packet->family, &packet->offload, packet->protocol,
				   frame.length - l4);
	} else {
		mv_offload_fill(head, packet->family, &packet->offload, packet->protocol, header - l4,
				*payload, frame.length - l4);
	}
	return mv_rx_push(to, &frame);
}

static void forward_segments(struct mv_rx *to, const struct mv_packet *packet)
{
	uint32_t total = packet->length - packet->payload, size = packet->offload.gso_size;
	struct mv_reader payload = payload_of(packet, packet->payload);
	struct piece piece = { 0 };

	for (unsigned int number = 0; piece.offset < total; number++) {
		int r;

		piece.length = total - piece.offset < size ? total - piece.offset : size;
		piece.last = piece.offset + piece.length == total;
		r = push_segment(to, packet, &piece, number, &payload);
		if (r < 0) {
			drop_rest(to, r, total - piece.offset, size, size);
			return;
		}
		mv_reader_skip(&payload, piece.length);
		piece.offset += piece.length;
	}
}

/* ---- fragments (RFC 791, 3.2) ---- */

/* Options that belong to the first fragment only become empty ones, so no header changes length. */
static void blank_options(uint8_t *options, uint32_t length)
{
	uint32_t size;

	for (uint32_t i = 0; i < length && options[i] != OPTION_END; i += size) {
		size = options[i] == OPTION_NO_OPERATION ? 1 : options[i + 1];
		if (!(options[i] & OPTION_COPIED))
			memset(options + i, OPTION_NO_OPERATION, size);
	}
}

static int push_fragment(struct mv_rx *to, const struct mv_packet *packet, uint32_t header,
			 const struct piece *piece, const struct mv_reader *payload)
{
	uint8_t head[MV_HEAD];
	uint8_t *ip = head + MV_ETH_SIZE;
	unsigned int field;
	struct mv_frame frame = {
		.head = head,
		.head_length = header,
		.rest = *payload,
		.length = header + piece->length,
	};

	memcpy(head, packet->head, header);
	/* The packet may be a fragment itself: offsets go on from its own, and more may follow it. */
	field = mv_get16(ip + 6) + piece->offset / FRAGMENT_UNIT;
	mv_put16(ip + 6, piece->last ? field : field | IPV4_MORE_FRAGMENTS);
	mv_put16(ip + 2, frame.length - MV_ETH_SIZE);
	if (piece->offset > 0)
		blank_options(ip + MV_IPV4_SIZE, header - MV_ETH_SIZE - MV_IPV4_SIZE);
	fill_ipv4_checksum(ip);
	return mv_rx_push(to, &frame);
}

/* What follows the first `header` bytes, as a chain: first the private bytes, then the guest's. */
static void splice(struct mv_chain *chain, struct mv_packet *packet, uint32_t header)
{
	struct mv_reader rest = payload_of(packet, packet->head_length);

	chain->n_segments = 0;
	if (packet->head_length > header)
		chain->segments[chain->n_segments++] = (struct mv_segment){
			.host = packet->head + header, .length = packet->head_length - header,
		};
	for (; rest.segment < packet->chain->n_segments; rest.segment++, rest.offset = 0) {
		const struct mv_segment *segment = &packet->chain->segments[rest.segment];

		chain->segments[chain->n_segments++] = (struct mv_segment){
			.host = segment->host + rest.offset, .length = segment->length - rest.offset,
		};
	}
}

static void forward_fragments(struct mv_rx *to, struct mv_packet *packet, uint32_t mtu)
{
	uint32_t header = MV_ETH_SIZE + (mv_packet_ip(packet)[0] & 15U) * 4;
	uint32_t total = packet->length - header, most = mtu + MV_ETH_SIZE;
	uint32_t room = (most - header) / FRAGMENT_UNIT * FRAGMENT_UNIT;
	struct mv_chain chain;
	struct mv_reader payload = { .chain = &chain };
	struct piece piece = { 0 };

	/* No fragment has the whole datagram, so this is the last place that can checksum it. */
	if (packet->offload.flags)
		fill_checksum(packet);
	splice(&chain, packet, header);
	while (piece.offset < total) {
		uint32_t left = total - piece.offset;
		int r;

		piece.last = header + left <= most;
		piece.length = piece.last ? left : room;
		r = push_fragment(to, packet, header, &piece, &payload);
		if (r < 0) {
			drop_rest(to, r, left, room, most - header);
			return;
		}
		mv_reader_skip(&payload, piece.length);
		piece.offset += piece.length;
	}
}

void mv_forward(struct mv_rx *to, struct mv_packet *packet, unsigned int mtu)
{
	bool gso = packet->offload.gso_type != MV_GSO_NONE;

	rewrite(packet, to->port);
	if (gso && !mv_offload_takes_gso(&packet->offload, packet->family, to->port->features))
		forward_segments(to, packet);
	else if (mv_offload_ip_size(packet) > mtu)
		forward_fragments(to, packet, mtu);
	else
		forward_whole(to, packet);
}
