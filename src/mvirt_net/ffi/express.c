/*
 * The short way of packets that ask for little: a frame in one descriptor, IP without options, extension
 * headers or fragments, nothing left to the device but a checksum that the receiver takes unfinished, of
 * a flow that is known, to a guest that has nothing waiting and whose next buffer it fits into.
 *
 * Which packets that are is up to the guests. A driver that has each frame in one piece sends little
 * else. Of what Linux sends it is datagrams and acknowledgements; the data of TCP, in pages of its own,
 * comes in several descriptors, and most of it is left to be segmented.
 *
 * Theory of operation. What is done here is what classify.c, forward.c and rx.c do with such a packet,
 * less the questions that it has answered by being one. Whatever is not so, or is wrong in any way, is
 * left to them before anything was done to a ring, and they begin from the start with a copy of their
 * own: in which the guest may have written something else meanwhile, so that one frame can turn to two
 * receivers. This file knows no reason to drop a packet, and makes no difference but one: with it a
 * packet takes three fifths of the instructions.
 *
 * Each byte of the headers is loaded once, into a number that is looked at and then stored for the
 * receiver. There is no copy in memory: to load from it what was stored in pieces of another size would
 * stall the processor several times for each packet.
 */
#include "core.h"

enum {
	HEADER = sizeof(struct mv_net_hdr),
	SHORTEST = HEADER + MV_ETH_SIZE + MV_IPV6_SIZE,

	VERSION_4_WITHOUT_OPTIONS = 0x45,
	DONT_FRAGMENT = 0x4000,
};

/* The headers of a frame, and virtio's before it; parts of a header that lie side by side together. */
struct front {
	uint64_t virtio;
	uint64_t macs;
	uint32_t macs_rest;
	uint16_t type;
	uint64_t ip[5];		/* IPv4: two and a half */
};

enum { IP_AT = HEADER + MV_ETH_SIZE };

static struct front load_front(const uint8_t *host)
{
	struct front front = {
		.virtio = mv_load64(host),
		.macs = mv_load64(host + HEADER),
		.macs_rest = mv_load32(host + HEADER + 8),
		.type = mv_load16(host + HEADER + 12),
		.ip[0] = mv_load64(host + IP_AT),
		.ip[1] = mv_load64(host + IP_AT + 8),
	};

	if (front.type == __builtin_bswap16(MV_TYPE_IPV6)) {
		front.ip[2] = mv_load64(host + IP_AT + 16);
		front.ip[3] = mv_load64(host + IP_AT + 24);
		front.ip[4] = mv_load64(host + IP_AT + 32);
	} else {
		front.ip[2] = mv_load32(host + IP_AT + 16);
	}
	mv_load_once();
	return front;
}

/* The 16-bit field at byte `at` of a number that was loaded from a header. */
static unsigned int field(uint64_t loaded, unsigned int at)
{
	return __builtin_bswap16((uint16_t)(loaded >> 8 * at));
}

static unsigned int byte(uint64_t loaded, unsigned int at)
{
	return loaded >> 8 * at & 0xff;
}

/*
 * The length of an IP packet in so many bytes; 0: it is not a plain one. These two follow
 * mv_parse_ipv4() and mv_parse_ipv6().
 */
static uint32_t plain_ipv4(const struct front *front, uint32_t room)
{
	uint32_t total = field(front->ip[0], 2);

	if (byte(front->ip[0], 0) != VERSION_4_WITHOUT_OPTIONS || total < MV_IPV4_SIZE || total > room)
		return 0;
	if ((field(front->ip[0], 6) & ~(unsigned int)DONT_FRAGMENT) || byte(front->ip[1], 0) <= 1 ||
	    !mv_ipv4_sum_is_right(front->ip[0], front->ip[1], (uint32_t)front->ip[2]))
		return 0;
	return total;
}

static uint32_t plain_ipv6(const struct front *front, uint32_t room)
{
	uint32_t total = MV_IPV6_SIZE + field(front->ip[0], 4);

	if (byte(front->ip[0], 0) >> 4 != 6 || total > room || byte(front->ip[0], 7) <= 1 ||
	    mv_is_extension((uint8_t)byte(front->ip[0], 6)))
		return 0;
	return total;
}

static struct mv_flow_key flow_of(const struct front *front, enum mv_family family)
{
	struct mv_flow_key key = {
		.ethernet = front->macs,
		.ethernet_rest = front->macs_rest | (uint64_t)front->type << 32,
		.family = family,
	};

	if (family == MV_IPV4)
		key.addresses[0] = front->ip[1] >> 32 | front->ip[2] << 32;
	else
		memcpy(key.addresses, front->ip + 1, sizeof(key.addresses));
	return key;
}

static uint32_t ip_size(enum mv_family family)
{
	return family == MV_IPV4 ? MV_IPV4_SIZE : MV_IPV6_SIZE;
}

static unsigned int protocol_of(const struct front *front, enum mv_family family)
{
	return family == MV_IPV4 ? byte(front->ip[1], 1) : byte(front->ip[0], 6);
}

/* ---- what is left to the device (virtio 1.2, 5.1.6.2) ---- */

static bool leaves_checksum(uint64_t virtio)
{
	return byte(virtio, offsetof(struct mv_net_hdr, flags)) & MV_HDR_NEEDS_CSUM;
}

static bool leaves_segmentation(uint64_t virtio)
{
	return byte(virtio, offsetof(struct mv_net_hdr, gso_type)) != MV_GSO_NONE;
}

/* The header for a receiver that has nothing to do ... */
static const struct mv_net_hdr done_hdr = { .num_buffers = 1 };

#define PARTIAL_HDR(ip_size, checksum) { \
	.flags = MV_HDR_NEEDS_CSUM, \
	.csum_start = MV_ETH_SIZE + (ip_size), \
	.csum_offset = (checksum), \
	.num_buffers = 1, \
}

/* ... and for one with a checksum to complete: in one of four places, so no header is made for that. */
static const struct mv_net_hdr tcp_hdr[MV_FAMILIES] = {
	[MV_IPV4] = PARTIAL_HDR(MV_IPV4_SIZE, MV_TCP_CHECKSUM),
	[MV_IPV6] = PARTIAL_HDR(MV_IPV6_SIZE, MV_TCP_CHECKSUM),
};
static const struct mv_net_hdr udp_hdr[MV_FAMILIES] = {
	[MV_IPV4] = PARTIAL_HDR(MV_IPV4_SIZE, MV_UDP_CHECKSUM),
	[MV_IPV6] = PARTIAL_HDR(MV_IPV6_SIZE, MV_UDP_CHECKSUM),
};

/*
 * What a transport header says of its length or the datagram's. It was checked, so the receiver gets
 * what was loaded here, whatever the sender has there when the rest is copied.
 */
struct said {
	uint32_t at;	/* in the buffer */
	uint16_t loaded;
};

static struct said load_said(const uint8_t *host, uint32_t at)
{
	struct said said = { .at = at, .loaded = mv_load16(host + at) };

	mv_load_once();
	return said;
}

/* Whether the one may leave a checksum to the device, and the device to the other. */
static bool may_leave_checksum(const mv_port *from, const mv_port *to)
{
	return (from->features & MV_F_CSUM) && (to->features & MV_F_GUEST_CSUM);
}

/*
 * The header for the receiver of an IP packet of that length, whose checksum was left to the device;
 * NULL: it is none that can be left. This follows mv_offload_check().
 */
static const struct mv_net_hdr *partial_hdr(const struct front *front, enum mv_family family,
					    const uint8_t *host, uint32_t length, struct said *said)
{
	uint32_t l4 = ip_size(family), left = length - l4, size;
	unsigned int protocol = protocol_of(front, family);
	const struct mv_net_hdr *hdr;

	if (protocol == MV_PROTO_TCP && left >= MV_TCP_SIZE) {
		hdr = &tcp_hdr[family];
		*said = load_said(host, IP_AT + l4 + MV_TCP_DATA_OFFSET);
		size = (byte(said->loaded, 0) >> 4) * 4;
		if (size < MV_TCP_SIZE || size > left)
			return NULL;
	} else if (protocol == MV_PROTO_UDP && left >= MV_UDP_SIZE) {
		hdr = &udp_hdr[family];
		*said = load_said(host, IP_AT + l4 + MV_UDP_LENGTH);
		if (field(said->loaded, 0) != left)
			return NULL;
	} else {
		return NULL;
	}
	if ((uint16_t)(front->virtio >> 48) != hdr->csum_start ||
	    mv_load16(host + offsetof(struct mv_net_hdr, csum_offset)) != hdr->csum_offset)
		return NULL;
	return hdr;
}

/* ---- the packet ---- */

/* Store the headers after virtio's as the receiver gets them; returns where they end. */
static uint32_t store_front(uint8_t *host, const struct front *front, enum mv_family family,
			    const mv_port *to)
{
	uint64_t ip;

	_Static_assert(offsetof(mv_port, gateway_mac) == offsetof(mv_port, mac) + 6, "side by side");
	memcpy(host + HEADER, to->mac, 6);
	memcpy(host + HEADER + 6, to->gateway_mac, 6);
	memcpy(host + HEADER + 12, &front->type, sizeof(front->type));
	if (family == MV_IPV6) {
		ip = front->ip[0] - (UINT64_C(1) << 56);	/* hop limit */
		memcpy(host + IP_AT, &ip, sizeof(ip));
		memcpy(host + IP_AT + 8, front->ip + 1, MV_IPV6_SIZE - 8);
		return IP_AT + MV_IPV6_SIZE;
	}
	ip = (front->ip[1] & ~UINT64_C(0xffff0000)) - 1;	/* TTL */
	ip |= (uint64_t)__builtin_bswap16((uint16_t)mv_ipv4_sum_of_hop(field(front->ip[1], 2))) << 16;
	memcpy(host + IP_AT, front->ip, 8);
	memcpy(host + IP_AT + 8, &ip, sizeof(ip));
	memcpy(host + IP_AT + 16, front->ip + 2, 4);
	return IP_AT + MV_IPV4_SIZE;
}

/*
 * By which of its pairs the receiver gets the packet. Not inlined, and handed as little as possible: the
 * packets of all receivers with one pair would pay for it with 20 instructions. So the headers are read
 * once more here, for nothing but this. A guest that changes them meanwhile changes the order of its own
 * packets.
 */
__attribute__((noinline))
static struct mv_pair *choose_pair(mv_port *to, const uint8_t *host, uint32_t length)
{
	struct front front = load_front(host);
	enum mv_family family = front.type == __builtin_bswap16(MV_TYPE_IPV4) ? MV_IPV4 : MV_IPV6;
	uint32_t header = ip_size(family), ports = 0;
	unsigned int protocol = protocol_of(&front, family);
	struct mv_flow_key key = flow_of(&front, family);

	if (mv_has_ports(protocol) && length >= header + 4)
		ports = mv_load32(host + IP_AT + header);
	return mv_port_choose(to, mv_flow_hash(&key, protocol, ports));
}

bool mv_express(struct mv_drain *drain, const struct mv_slot *slot)
{
	const struct mv_net_hdr *hdr;
	const struct mv_slot *into;
	struct said said;
	struct mv_flow_key key;
	struct front front;
	enum mv_family family;
	uint32_t room, length, done;
	bool partial = false;
	mv_port *to;

	if (!drain->express || slot->length < SHORTEST || slot->length > HEADER + MV_MAX_FRAME)
		return false;
	front = load_front(slot->host);
	room = slot->length - IP_AT;
	if (front.type == __builtin_bswap16(MV_TYPE_IPV4)) {
		family = MV_IPV4;
		length = plain_ipv4(&front, room);
	} else if (front.type == __builtin_bswap16(MV_TYPE_IPV6)) {
		family = MV_IPV6;
		length = plain_ipv6(&front, room);
	} else {
		return false;
	}
	if (length == 0 || leaves_segmentation(front.virtio))
		return false;
	key = flow_of(&front, family);
	to = mv_flow_find(drain->pair, &key);
	if (!to || to == drain->port || length > mv_port_mtu(to, family))
		return false;
	mv_turn_to_receiver(drain, mv_port_is_simple(to) ? &to->first :
			    choose_pair(to, slot->host, length));
	into = mv_rx_slot(&drain->rx);
	if (!into || drain->rx.header != HEADER || into->length < IP_AT + length)
		return false;
	if (leaves_checksum(front.virtio)) {
		if (!may_leave_checksum(drain->port, to))
			return false;
		hdr = partial_hdr(&front, family, slot->host, length, &said);
		if (!hdr)
			return false;
		mv_store_hdr(into->host, hdr, HEADER);
		partial = true;
	} else {
		mv_store_hdr(into->host, &done_hdr, HEADER);
	}
	done = store_front(into->host, &front, family, to);
	/* The one copy of the rest; two guests may share memory, and then it may be the same bytes. */
	memmove(into->host + done, slot->host + done, IP_AT + length - done);
	if (partial)
		memcpy(into->host + said.at, &said.loaded, sizeof(said.loaded));
	mv_rx_take_slot(&drain->rx, into, MV_ETH_SIZE + length);
	drain->bytes += slot->length - HEADER;
	drain->routed++;
	return true;
}
