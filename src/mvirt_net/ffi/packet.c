/*
 * A transmitted frame taken apart: Ethernet, IPv4 or IPv6, and where the transport header is.
 *
 * Only the private copy of the first bytes is looked at. It holds the headers of nearly all packets
 * from the start and is lengthened when one has more; a byte that is in it is never read again.
 */
#include "core.h"

#include <string.h>

enum {
	IPV4_DONT_FRAGMENT = 0x4000,
	IPV4_MORE_FRAGMENTS = 0x2000,
	IPV4_OFFSET = 0x1fff,

	OPTION_END = 0,
	OPTION_NO_OPERATION = 1,
	OPTION_RECORD_ROUTE = 7,
	OPTION_TIMESTAMP = 68,
	OPTION_LOOSE_ROUTE = 131,
	OPTION_STRICT_ROUTE = 137,

	FRAGMENT_SIZE = 8,	/* of the fragment header */
	FRAGMENT_UNIT = 8,
	FRAGMENT_OFFSET = 0xfff8,
	MAX_PACKET = 65535,
};

void mv_packet_begin(struct mv_packet *packet, const struct mv_chain *chain, uint32_t header)
{
	packet->length = (uint32_t)chain->length - header;
	packet->chain = chain;
	packet->skip = header;
	packet->fragment = false;
	packet->dont_fragment = false;
	packet->rerouted = false;
	packet->l4 = 0;
	packet->payload = 0;
	packet->offload = (struct mv_net_hdr){ 0 };
	packet->head_length = packet->length < MV_PEEK ? packet->length : MV_PEEK;
	if (header == sizeof(packet->hdr)) {
		mv_chain_read(chain, 0, packet->both, header + packet->head_length);
	} else {
		packet->hdr.num_buffers = 0;
		mv_chain_read(chain, 0, &packet->hdr, header);
		mv_chain_read(chain, header, packet->head, packet->head_length);
	}
}

bool mv_packet_need(struct mv_packet *packet, uint32_t length)
{
	uint32_t more;

	if (length <= packet->head_length)
		return true;
	if (length > packet->length || length > MV_HEAD)
		return false;
	/* All there may be at once: whoever needs more once may need more again. */
	more = (packet->length < MV_HEAD ? packet->length : MV_HEAD) - packet->head_length;
	mv_chain_read(packet->chain, packet->skip + packet->head_length,
		      packet->head + packet->head_length, more);
	packet->head_length += more;
	return true;
}

/* Leave out what follows the packet in its frame. */
static void trim(struct mv_packet *packet, uint32_t length)
{
	packet->length = length;
	if (packet->head_length > length)
		packet->head_length = length;
}

/*
 * Options (RFC 791, 3.1). Those by which a sender meddles with routing, or has routers write into
 * the packet, are refused (RFC 7126, 4.3 to 4.7); routers pass all others on.
 */
static int check_options(const uint8_t *options, uint32_t length)
{
	uint32_t size;

	for (uint32_t i = 0; i < length; i += size) {
		switch (options[i]) {
		case OPTION_END:
			return 0;
		case OPTION_NO_OPERATION:
			size = 1;
			continue;
		case OPTION_RECORD_ROUTE:
		case OPTION_TIMESTAMP:
		case OPTION_LOOSE_ROUTE:
		case OPTION_STRICT_ROUTE:
			return -MV_DROP_IP_OPTION;
		}
		if (i + 1 == length)
			return -MV_DROP_IP_MALFORMED;
		size = options[i + 1];
		if (size < 2 || size > length - i)
			return -MV_DROP_IP_MALFORMED;
	}
	return 0;
}

/* The Internet checksum over a whole header, its checksum field included, is 0 (RFC 1071). */
static bool checksum_is_right(const uint8_t *header, uint32_t length)
{
	struct mv_sum sum = { 0 };

	if (length == MV_IPV4_SIZE)
		return mv_ipv4_sum_is_right(mv_load64(header), mv_load64(header + 8),
					    mv_load32(header + 16));
	mv_sum_add(&sum, header, length);
	return mv_sum_finish(&sum) == 0;
}

/* RFC 791, 3.1; RFC 1812, 5.2.2. */
int mv_parse_ipv4(struct mv_packet *packet)
{
	const uint8_t *ip = mv_packet_ip(packet);
	uint32_t header, total;
	unsigned int fragment;

	packet->family = MV_IPV4;
	if (!mv_packet_need(packet, MV_ETH_SIZE + MV_IPV4_SIZE) || ip[0] >> 4 != 4)
		return -MV_DROP_IP_MALFORMED;
	header = (ip[0] & 15U) * 4;
	total = mv_get16(ip + 2);
	if (header < MV_IPV4_SIZE || header > total || total > packet->length - MV_ETH_SIZE ||
	    !mv_packet_need(packet, MV_ETH_SIZE + header) || !checksum_is_right(ip, header))
		return -MV_DROP_IP_MALFORMED;
	trim(packet, MV_ETH_SIZE + total);
	fragment = mv_get16(ip + 6);
	packet->fragment = fragment & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET);
	packet->dont_fragment = fragment & IPV4_DONT_FRAGMENT;
	packet->protocol = ip[9];
	/* The "ping of death" is longer than a packet once it is put together again. */
	if ((fragment & IPV4_OFFSET) * FRAGMENT_UNIT + total > MAX_PACKET)
		return -MV_DROP_IP_MALFORMED;
	if (!(fragment & IPV4_OFFSET))
		packet->l4 = MV_ETH_SIZE + header;
	return check_options(ip + MV_IPV4_SIZE, header - MV_IPV4_SIZE);
}

/*
 * Bytes of the extension header at `at`, whose kind is packet->protocol; 0: it is none but what
 * the packet is for. Negative: a negated reason to drop the packet (RFC 8200, 4; RFC 4302; RFC 5095).
 */
static int extension_size(struct mv_packet *packet, uint32_t at, bool first)
{
	const uint8_t *header = packet->head + at;

	if (!mv_is_extension(packet->protocol))
		return 0;
	if (packet->protocol == MV_HOP_BY_HOP && !first)
		return -MV_DROP_IP_MALFORMED;
	if (!mv_packet_need(packet, at + FRAGMENT_SIZE))
		return -MV_DROP_IP_MALFORMED;
	if (packet->protocol == MV_ROUTING && header[2] == 0)
		return -MV_DROP_IP_OPTION;
	if (packet->protocol == MV_FRAGMENT)
		return FRAGMENT_SIZE;
	return packet->protocol == MV_AUTHENTICATION ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
}

/* Walk over the extension headers, a bounded number of them in a bounded number of bytes. */
static int walk_extensions(struct mv_packet *packet)
{
	uint32_t at = MV_ETH_SIZE + MV_IPV6_SIZE;

	packet->protocol = mv_packet_ip(packet)[6];
	for (unsigned int n = 0; n <= MV_MAX_EXTENSIONS; n++) {
		int size = extension_size(packet, at, n == 0);
		bool later = false;

		if (size < 0)
			return size;
		if (size == 0) {
			packet->l4 = at;
			return 0;
		}
		if (!mv_packet_need(packet, at + (uint32_t)size))
			return -MV_DROP_IP_MALFORMED;
		/* With segments left the packet goes on from its target to others (RFC 8200, 4.4). */
		if (packet->protocol == MV_ROUTING && packet->head[at + 3] > 0)
			packet->rerouted = true;
		if (packet->protocol == MV_FRAGMENT) {
			uint32_t offset = mv_get16(packet->head + at + 2) & FRAGMENT_OFFSET;

			if (offset + packet->length - at - FRAGMENT_SIZE > MAX_PACKET)
				return -MV_DROP_IP_MALFORMED;
			packet->fragment = true;
			later = offset > 0;
		}
		packet->protocol = packet->head[at];
		if (later)
			return 0;
		at += (uint32_t)size;
	}
	return -MV_DROP_IP_MALFORMED;
}

/* RFC 8200, 3. A jumbogram (RFC 2675) says that it has no payload, so nothing of it fits. */
int mv_parse_ipv6(struct mv_packet *packet)
{
	const uint8_t *ip = mv_packet_ip(packet);
	uint32_t payload;

	packet->family = MV_IPV6;
	if (!mv_packet_need(packet, MV_ETH_SIZE + MV_IPV6_SIZE) || ip[0] >> 4 != 6)
		return -MV_DROP_IP_MALFORMED;
	payload = mv_get16(ip + 4);
	if (payload > packet->length - MV_ETH_SIZE - MV_IPV6_SIZE)
		return -MV_DROP_IP_MALFORMED;
	trim(packet, MV_ETH_SIZE + MV_IPV6_SIZE + payload);
	packet->dont_fragment = true;	/* by routers, that is (RFC 8200, 4.5) */
	return walk_extensions(packet);
}
