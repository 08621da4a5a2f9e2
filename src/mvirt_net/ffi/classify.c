/*
 * Where a transmitted frame goes: to a service of the gateway, or nowhere with a reason.
 *
 * Judged from a private copy of the frame's first bytes. The network is layer 3 alone, so a frame
 * is for the gateway's MAC address or a broadcast; no frame goes from NIC to NIC by its MAC.
 */
#include "core.h"

#include <string.h>

enum {
	ETH_SOURCE = 6,
	ETH_TYPE = 12,
	TYPE_IPV4 = 0x0800,
	TYPE_ARP = 0x0806,
	TYPE_IPV6 = 0x86dd,

	IPV4_MIN_SIZE = 20,
	IPV4_MORE_FRAGMENTS = 0x2000,
	IPV4_OFFSET = 0x1fff,
	PROTO_ICMP = 1,
	PROTO_UDP = 17,
	UDP_SIZE = 8,
	PORT_DHCP_SERVER = 67,
};

static const uint8_t gateway_mac[6] = { 0x02, 0, 0, 0, 0, 0x01 };
static const uint8_t broadcast_mac[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
static const uint8_t broadcast_ipv4[4] = { 0xff, 0xff, 0xff, 0xff };

static unsigned int get16(const uint8_t *p)
{
	return (unsigned int)p[0] << 8 | p[1];
}

static struct mv_verdict drop(enum mv_drop reason)
{
	return (struct mv_verdict){ .punt = false, .value = reason };
}

static struct mv_verdict punt(enum mv_punt_kind kind)
{
	return (struct mv_verdict){ .punt = true, .value = kind };
}

/* The Internet checksum over a whole header, its checksum field included, is 0 (RFC 1071). */
static bool checksum_is_right(const uint8_t *header, unsigned int length)
{
	uint32_t sum = 0;

	for (unsigned int i = 0; i < length; i += 2)
		sum += get16(header + i);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)(sum + (sum >> 16)) == 0xffff;
}

/* An IPv4 header that agrees with itself and with the frame (RFC 791, RFC 1122 3.2.1). */
static bool ipv4_is_sane(const uint8_t *ip, uint32_t available)
{
	unsigned int header, total;

	if (available < IPV4_MIN_SIZE || ip[0] >> 4 != 4)
		return false;
	header = (ip[0] & 15U) * 4;
	total = get16(ip + 2);
	return header >= IPV4_MIN_SIZE && header <= total && total <= available &&
	       checksum_is_right(ip, header);
}

/* A source that no host has: multicast, class E and broadcast, loopback (RFC 1122 3.2.1.3). */
static bool ipv4_source_is_wrong(const uint8_t *source)
{
	return source[0] >= 224 || source[0] == 127;
}

/* A packet to the gateway's address or to everyone: only DHCP and ICMP are served. */
static struct mv_verdict classify_local_ipv4(const uint8_t *ip, bool to_all)
{
	unsigned int header = (ip[0] & 15U) * 4, total = get16(ip + 2);
	unsigned int protocol = ip[9];

	if (get16(ip + 6) & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET))
		return drop(MV_DROP_FRAGMENT);
	if (protocol == PROTO_UDP && total >= header + UDP_SIZE &&
	    get16(ip + header + 2) == PORT_DHCP_SERVER)
		return punt(MV_PUNT_DHCPV4);
	if (to_all)
		return drop(MV_DROP_MULTICAST);
	if (protocol == PROTO_ICMP)
		return punt(MV_PUNT_ICMPV4);
	return drop(MV_DROP_NO_ROUTE);
}

static struct mv_verdict classify_ipv4(const struct mv_identity *identity, const uint8_t *frame,
				       uint32_t length)
{
	const uint8_t *ip = frame + MV_ETH_SIZE, *target = ip + 16;

	if (!ipv4_is_sane(ip, length - MV_ETH_SIZE) || ipv4_source_is_wrong(ip + 12))
		return drop(MV_DROP_IP_MALFORMED);
	if (!memcmp(target, identity->gateway_ipv4, 4))
		return classify_local_ipv4(ip, false);
	if (!memcmp(target, broadcast_ipv4, 4))
		return classify_local_ipv4(ip, true);
	/* Multicast (224/4) and the rest of what only a link would carry stay here. */
	if (target[0] >= 224 || (frame[0] & 1))
		return drop(MV_DROP_MULTICAST);
	return drop(MV_DROP_NO_ROUTE);
}

struct mv_verdict mv_classify(const struct mv_identity *identity, const uint8_t *head,
			      uint32_t length)
{
	bool to_group = head[0] & 1;

	if (memcmp(head + ETH_SOURCE, identity->mac, 6) != 0)
		return drop(MV_DROP_SOURCE_MAC);
	if (!to_group && memcmp(head, gateway_mac, 6) != 0)
		return drop(MV_DROP_DESTINATION_MAC);
	switch (get16(head + ETH_TYPE)) {
	case TYPE_ARP:
		if (to_group && memcmp(head, broadcast_mac, 6) != 0)
			return drop(MV_DROP_MULTICAST);
		return punt(MV_PUNT_ARP);
	case TYPE_IPV4:
		return classify_ipv4(identity, head, length);
	case TYPE_IPV6:
		return drop(to_group ? MV_DROP_MULTICAST : MV_DROP_NO_ROUTE);
	default:
		return drop(MV_DROP_ETHERTYPE);
	}
}
