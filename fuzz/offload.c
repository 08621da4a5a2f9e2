/*
 * The virtio_net_hdr check and the parsers before it, without rings.
 *
 * The input is a header, features and a frame, cut into pieces that lie in blocks of exactly their
 * size: a byte read past the end of one is a crash, which it is not in guest memory.
 */
#include "common.h"

#include <stdlib.h>
#include <string.h>

enum {
	MAX_PIECES = 4,
	TYPE_IPV4 = 0x0800,
	TYPE_IPV6 = 0x86dd,
};

static const uint64_t driver_features = MV_F_CSUM | MV_F_HOST_TSO4 | MV_F_HOST_TSO6 | MV_F_HOST_ECN |
					MV_F_HOST_USO;
static const uint8_t mac[6] = { 0x52, 0x54, 0, 0, 0, 0x0a };

static void add_piece(struct mv_chain *chain, struct input *input, size_t length)
{
	struct mv_segment *segment = &chain->segments[chain->n_segments];

	if (length == 0)
		return;
	segment->host = malloc(length);
	CHECK(segment->host);
	segment->length = (uint32_t)length;
	take(input, segment->host, length);
	chain->n_segments++;
	chain->length += length;
}

/* All of the input that is left, in pieces of sizes that come from it, too. */
static void take_chain(struct mv_chain *chain, struct input *input)
{
	for (unsigned int i = 0; i + 1 < MAX_PIECES; i++) {
		size_t length = take8(input);

		add_piece(chain, input, length < input->size ? length : input->size);
	}
	add_piece(chain, input, input->size);
}

static void check_packet(const struct mv_packet *packet, uint32_t frame_length)
{
	CHECK(packet->length <= frame_length && packet->head_length <= packet->length);
	CHECK(packet->head_length <= MV_HEAD);
	CHECK(packet->l4 == 0 || (packet->l4 >= MV_ETH_SIZE + MV_IPV4_SIZE &&
				  packet->l4 <= packet->length));
}

/* Only what fits the packet and what was negotiated is passed on. */
static void check_offload(const struct mv_packet *packet, const struct mv_net_hdr *hdr,
			  uint64_t features)
{
	const struct mv_net_hdr *offload = &packet->offload;
	unsigned int gso = offload->gso_type & ~(unsigned int)MV_GSO_ECN;

	CHECK((offload->flags & ~(unsigned int)MV_HDR_NEEDS_CSUM) == 0);
	if (!offload->flags) {
		CHECK(offload->gso_type == MV_GSO_NONE && offload->csum_start == 0);
		return;
	}
	CHECK(features & MV_F_CSUM && hdr->flags & MV_HDR_NEEDS_CSUM && !packet->fragment);
	CHECK(offload->csum_start == packet->l4 && offload->csum_start == hdr->csum_start);
	CHECK(offload->csum_start + offload->csum_offset + 2U <= packet->head_length);
	CHECK(packet->payload <= packet->head_length && packet->payload > packet->l4);
	if (offload->gso_type == MV_GSO_NONE)
		return;
	CHECK(offload->gso_type == hdr->gso_type && offload->gso_size == hdr->gso_size);
	CHECK(offload->gso_size > 0 && offload->gso_size < packet->length - packet->payload);
	CHECK(offload->hdr_len == packet->payload && !packet->rerouted);
	CHECK(!(offload->gso_type & MV_GSO_ECN) || features & MV_F_HOST_ECN);
	switch (gso) {
	case MV_GSO_TCPV4:
		CHECK(features & MV_F_HOST_TSO4 && packet->family == MV_IPV4 &&
		      packet->protocol == MV_PROTO_TCP);
		break;
	case MV_GSO_TCPV6:
		CHECK(features & MV_F_HOST_TSO6 && packet->family == MV_IPV6 &&
		      packet->protocol == MV_PROTO_TCP);
		break;
	default:
		CHECK(gso == MV_GSO_UDP_L4 && features & MV_F_HOST_USO &&
		      packet->protocol == MV_PROTO_UDP && offload->gso_type == gso);
	}
}

static void check_verdict(const struct mv_verdict *verdict)
{
	/* There is no other port. */
	CHECK(verdict->action == MV_DROP || verdict->action == MV_PUNT);
	if (verdict->action == MV_PUNT) {
		CHECK(verdict->value <= MV_PUNT_DHCPV6);
		return;
	}
	CHECK(verdict->value < MV_DROP_REASONS);
	CHECK(!verdict->tell || verdict->error <= MV_ICMP_TOO_BIG);
}

static void judge(const struct mv_chain *chain, const struct mv_net_hdr *hdr, uint64_t features,
		  mv_port *port)
{
	struct mv_packet packet;
	struct mv_verdict verdict;
	unsigned int type;
	int r = 0;

	mv_packet_begin(&packet, chain, 0);
	packet.hdr = *hdr;
	type = mv_get16(packet.head + 12);
	if (type == TYPE_IPV4)
		r = mv_parse_ipv4(&packet);
	else if (type == TYPE_IPV6)
		r = mv_parse_ipv6(&packet);
	check_packet(&packet, (uint32_t)chain->length);
	if (r == 0 && mv_offload_check(&packet, features) == 0)
		check_offload(&packet, hdr, features);
	mv_packet_begin(&packet, chain, 0);
	packet.hdr = *hdr;
	memcpy(packet.head + 6, mac, sizeof(mac));
	verdict = mv_classify(&port->first, &packet);
	check_packet(&packet, (uint32_t)chain->length);
	check_verdict(&verdict);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct mv_chain chain;
	static mv_port *port;
	struct input input = { data, size };
	struct mv_net_hdr hdr;
	uint64_t features = 0;

	if (!port) {
		const struct mv_prefix everything[2] = { { .family = MV_IPV4 }, { .family = MV_IPV6 } };

		port = mv_port_new(mv_network_new(1500), mac, 1);
		CHECK(port && mv_port_set_routes(port, everything, 2) == 0);
	}
	if (take8(&input) & 1)
		features = driver_features;
	else
		for (unsigned int bits = take16(&input), n = 0; bits; bits >>= 1, n++)
			features |= driver_features & (uint64_t)(bits & 1) << (n < 14 ? n : 56);
	take(&input, &hdr, sizeof(hdr));
	chain.n_segments = 0;
	chain.length = 0;
	take_chain(&chain, &input);
	CHECK(mv_port_set_features(port, features) == 0);
	if (chain.length >= MV_ETH_SIZE && chain.length <= MV_MAX_FRAME)
		judge(&chain, &hdr, features, port);
	for (unsigned int i = 0; i < chain.n_segments; i++)
		free(chain.segments[i].host);
	return 0;
}
