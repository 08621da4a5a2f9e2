/*
 * Offloads (virtio 1.2, 5.1.6): what a driver leaves to the device (checksums, segmentation), and
 * what another driver takes without either.
 *
 * Of the header that comes with a packet nothing is passed on. It is compared with the packet, and
 * what must then be true of it is written down anew: where the transport header is, where its
 * checksum, how long all headers are. So a driver only ever gets values that fit its packet.
 */
#include "core.h"

#include <string.h>

enum {
	/* More segments than any stack makes of one packet; a bound on what one can cause. */
	MAX_SEGMENTS = 1024,
};

/* The feature that a driver needs to leave segmentation of this kind to the device; 0: none has it. */
static uint64_t feature_to_send(unsigned int gso)
{
	switch (gso) {
	case MV_GSO_TCPV4:
		return MV_F_HOST_TSO4;
	case MV_GSO_TCPV6:
		return MV_F_HOST_TSO6;
	case MV_GSO_UDP_L4:
		return MV_F_HOST_USO;
	default:
		return 0;
	}
}

static uint64_t feature_to_take(unsigned int gso, enum mv_family family)
{
	switch (gso) {
	case MV_GSO_TCPV4:
		return MV_F_GUEST_TSO4;
	case MV_GSO_TCPV6:
		return MV_F_GUEST_TSO6;
	default:
		return family == MV_IPV4 ? MV_F_GUEST_USO4 : MV_F_GUEST_USO6;
	}
}

/* Whether the driver may ask for all this (5.1.6.2.1). */
static bool was_negotiated(const struct mv_net_hdr *hdr, uint64_t features)
{
	unsigned int gso = hdr->gso_type & ~(unsigned int)MV_GSO_ECN;

	if ((hdr->flags & MV_HDR_NEEDS_CSUM) && !(features & MV_F_CSUM))
		return false;
	if (hdr->gso_type == MV_GSO_NONE)
		return true;
	if ((hdr->gso_type & MV_GSO_ECN) && !(features & MV_F_HOST_ECN))
		return false;
	return features & feature_to_send(gso);
}

/* Where the transport header ends, and where in it the checksum is; false: no TCP or UDP header. */
static bool find_transport(struct mv_packet *packet, uint16_t *csum_offset)
{
	uint32_t at = packet->l4, size;

	if (at == 0 || packet->fragment)
		return false;
	if (packet->protocol == MV_PROTO_TCP && mv_packet_need(packet, at + MV_TCP_SIZE)) {
		*csum_offset = MV_TCP_CHECKSUM;
		size = (packet->head[at + MV_TCP_DATA_OFFSET] >> 4) * 4U;
		if (size < MV_TCP_SIZE)
			return false;
	} else if (packet->protocol == MV_PROTO_UDP && mv_packet_need(packet, at + MV_UDP_SIZE)) {
		*csum_offset = MV_UDP_CHECKSUM;
		size = MV_UDP_SIZE;
		if (mv_get16(packet->head + at + MV_UDP_LENGTH) != packet->length - at)
			return false;
	} else {
		return false;
	}
	packet->payload = at + size;
	return mv_packet_need(packet, packet->payload);
}

/* Whether a kind of segmentation is for such a packet. */
static bool fits(unsigned int gso, const struct mv_packet *packet)
{
	switch (gso) {
	case MV_GSO_TCPV4:
		return packet->protocol == MV_PROTO_TCP && packet->family == MV_IPV4;
	case MV_GSO_TCPV6:
		return packet->protocol == MV_PROTO_TCP && packet->family == MV_IPV6;
	default:
		return packet->protocol == MV_PROTO_UDP;
	}
}

/* Rebuild the part about segmentation, if there is more than one segment. */
static bool rebuild_gso(struct mv_packet *packet, const struct mv_net_hdr *hdr)
{
	unsigned int gso = hdr->gso_type & ~(unsigned int)MV_GSO_ECN;
	uint32_t payload = packet->length - packet->payload;

	if (gso == MV_GSO_NONE)
		return hdr->gso_type == MV_GSO_NONE;
	if (packet->rerouted || !fits(gso, packet) || hdr->gso_size == 0 ||
	    payload > (uint32_t)hdr->gso_size * MAX_SEGMENTS)
		return false;
	if ((hdr->gso_type & MV_GSO_ECN) && packet->protocol != MV_PROTO_TCP)
		return false;
	if (payload <= hdr->gso_size)
		return true;
	packet->offload.gso_type = hdr->gso_type;
	packet->offload.gso_size = hdr->gso_size;
	packet->offload.hdr_len = (uint16_t)packet->payload;
	return true;
}

int mv_offload_check(struct mv_packet *packet, uint64_t features)
{
	const struct mv_net_hdr *hdr = &packet->hdr;
	uint16_t csum_offset;

	/* Other flags are to be ignored (5.1.6.2.2), as are the fields of what is not asked for. */
	if (!(hdr->flags & MV_HDR_NEEDS_CSUM) && hdr->gso_type == MV_GSO_NONE)
		return 0;
	if (!was_negotiated(hdr, features))
		return -MV_DROP_OFFLOAD_NOT_NEGOTIATED;
	/* A segment needs its checksum, so who leaves one to the device leaves both (5.1.6.2.1). */
	if (!(hdr->flags & MV_HDR_NEEDS_CSUM) || !find_transport(packet, &csum_offset))
		return -MV_DROP_OFFLOAD_INVALID;
	if (hdr->csum_start != packet->l4 || hdr->csum_offset != csum_offset)
		return -MV_DROP_OFFLOAD_INVALID;
	packet->offload.flags = MV_HDR_NEEDS_CSUM;
	packet->offload.csum_start = (uint16_t)packet->l4;
	packet->offload.csum_offset = csum_offset;
	return rebuild_gso(packet, hdr) ? 0 : -MV_DROP_OFFLOAD_INVALID;
}

uint32_t mv_offload_ip_size(const struct mv_packet *packet)
{
	if (packet->offload.gso_type != MV_GSO_NONE)
		return packet->payload - MV_ETH_SIZE + packet->offload.gso_size;
	return packet->length - MV_ETH_SIZE;
}

bool mv_offload_takes_gso(const struct mv_net_hdr *offload, enum mv_family family,
			  uint64_t features)
{
	unsigned int gso = offload->gso_type & ~(unsigned int)MV_GSO_ECN;
	uint64_t needed = MV_F_GUEST_CSUM | feature_to_take(gso, family);

	if (offload->gso_type & MV_GSO_ECN)
		needed |= MV_F_GUEST_ECN;
	return (features & needed) == needed;
}

/* The sum of the pseudo-header (RFC 9293, 3.1; RFC 768; RFC 8200, 8.1) for so long a datagram. */
static void add_pseudo_header(struct mv_sum *sum, const uint8_t *head, enum mv_family family,
			      uint8_t protocol, uint32_t length)
{
	const uint8_t *ip = head + MV_ETH_SIZE;
	uint8_t tail[8] = { 0, (uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length,
			    0, 0, 0, protocol };

	if (family == MV_IPV4)
		mv_sum_add(sum, ip + 12, 8);
	else
		mv_sum_add(sum, ip + 8, 32);
	mv_sum_add(sum, tail, sizeof(tail));
}

static uint8_t *checksum_field(uint8_t *head, const struct mv_net_hdr *offload)
{
	return head + offload->csum_start + offload->csum_offset;
}

void mv_offload_fill(uint8_t *head, enum mv_family family, const struct mv_net_hdr *offload,
		     uint8_t protocol, uint32_t in_head, struct mv_reader rest, uint32_t length)
{
	struct mv_sum sum = { 0 };
	uint16_t pseudo;

	add_pseudo_header(&sum, head, family, protocol, length);
	pseudo = (uint16_t)~mv_sum_finish(&sum);
	memcpy(checksum_field(head, offload), &pseudo, sizeof(pseudo));
	mv_offload_finish(head, offload, protocol, in_head, rest, length);
}

void mv_offload_finish(uint8_t *head, const struct mv_net_hdr *offload, uint8_t protocol,
		       uint32_t in_head, struct mv_reader rest, uint32_t length)
{
	struct mv_sum sum = { 0 };
	uint16_t checksum;

	mv_sum_add(&sum, head + offload->csum_start, in_head);
	mv_sum_read(&sum, &rest, length - in_head);
	checksum = mv_sum_finish(&sum);
	/* In UDP 0 means that there is none (RFC 768); in TCP both zeros are as good. */
	if (checksum == 0 && protocol == MV_PROTO_UDP)
		checksum = 0xffff;
	memcpy(checksum_field(head, offload), &checksum, sizeof(checksum));
}

void mv_offload_prepare(uint8_t *head, enum mv_family family, const struct mv_net_hdr *offload,
			uint8_t protocol, uint32_t length)
{
	struct mv_sum sum = { 0 };
	uint16_t checksum;

	add_pseudo_header(&sum, head, family, protocol, length);
	checksum = (uint16_t)~mv_sum_finish(&sum);
	memcpy(checksum_field(head, offload), &checksum, sizeof(checksum));
}
