/*
 * Frames: UDP in IPv4, or one large TCP segment for the device to cut.
 *
 * To write a frame for each packet would take as long as to send it. So an mbuf keeps the frame that
 * was written into it, which a device only reads, and is written again when it comes from its pool for
 * the first time after there are to be other frames. Those of before may still be in a ring then: they
 * stay what they were, come late, and are known by their generation, which is in the source port. A
 * large frame is a chain: its first part comes from one pool, the others, which are all alike, from
 * another.
 *
 * A byte of the payload depends on its place in the frame alone, and the parts of a chain begin at
 * multiples of the length after which the bytes repeat.
 */
#include "client.h"

#include <stdio.h>
#include <string.h>

#include <rte_byteorder.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_tcp.h>

enum {
	TX_MBUFS = 2048,
	PART = 16384,		/* bytes of a large frame in one mbuf; a multiple of 256 */
	CACHE = 256,
	TTL_AT = ETHER + 8,
	CHECKSUM_AT = ETHER + 10,
	TCP_CHECKSUM_AT = ETHER + IPV4 + 16,
	TCP_URGENT_AT = TCP_CHECKSUM_AT + 2,
	TTL = 64,
	PORT_AT = ETHER + IPV4,		/* UDP's or TCP's source port: FIRST_PORT and the generation */
	FIRST_PORT = 1000,
};

static uint8_t pattern[UINT16_MAX + 1];

static void fill_pattern(void)
{
	for (size_t i = 0; i < sizeof(pattern); i++)
		pattern[i] = (uint8_t)(i * 7 + 3);
}

static void put_mac(uint8_t *at, unsigned int port)
{
	static const uint8_t prefix[5] = { 0x52, 0x54 };

	memcpy(at, prefix, sizeof(prefix));
	at[5] = (uint8_t)(port + 1);
}

static void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static uint32_t get16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

/* What frames call their generation. */
static uint32_t number_of(uint32_t generation)
{
	return generation % GENERATIONS;
}

static void put_address(uint8_t *at, unsigned int port)
{
	static const uint8_t prefix[3] = { 10 };

	memcpy(at, prefix, sizeof(prefix));
	at[3] = (uint8_t)(port + 1);
}

static void put_checksum(uint8_t *head)
{
	struct rte_ipv4_hdr ip;

	put16(head + CHECKSUM_AT, 0);
	memcpy(&ip, head + ETHER, sizeof(ip));
	ip.hdr_checksum = rte_ipv4_cksum(&ip);
	memcpy(head + CHECKSUM_AT, &ip.hdr_checksum, sizeof(ip.hdr_checksum));
}

static void put_ipv4(uint8_t *head, const struct flow *flow, unsigned int from, unsigned int to)
{
	uint8_t *ip = head + ETHER;

	ip[0] = 0x45;
	put16(ip + 2, flow->size - ETHER);
	ip[8] = TTL;
	ip[9] = flow->large ? IPPROTO_TCP : IPPROTO_UDP;
	put_address(ip + 12, from);
	put_address(ip + 16, to);
	put_checksum(head);
}

static void put_udp(uint8_t *at, uint32_t length)
{
	put16(at + 2, 2000);
	put16(at + 4, length);
}

/* What a driver leaves in the checksum is the sum over the pseudo header. */
static void put_tcp(uint8_t *head)
{
	uint8_t *tcp = head + ETHER + IPV4;
	struct rte_ipv4_hdr ip;
	uint16_t sum;

	put16(tcp + 2, 2000);
	tcp[12] = (TCP / 4) << 4;
	tcp[13] = RTE_TCP_ACK_FLAG;
	put16(tcp + 14, UINT16_MAX);
	memcpy(&ip, head + ETHER, sizeof(ip));
	sum = rte_ipv4_phdr_cksum(&ip, 0);
	memcpy(head + TCP_CHECKSUM_AT, &sum, sizeof(sum));
}

/* What a router makes of a header (RFC 1812, 5.2.1, 5.3.1). */
static void route(uint8_t *head, const uint8_t *gateway, unsigned int to)
{
	put_mac(head, to);
	memcpy(head + 6, gateway, 6);
	head[TTL_AT]--;
	put_checksum(head);
}

/* Have an mbuf that is nobody else's hold the frame. What it holds is written down in its hash. */
static inline void put_head(const struct flow *flow, struct rte_mbuf *mbuf)
{
	uint8_t *data = rte_pktmbuf_mtod(mbuf, uint8_t *);

	if (likely(mbuf->hash.usr == flow->generation))
		return;
	memcpy(data, pattern, RTE_MIN(flow->size, (uint32_t)PART));
	memcpy(data, flow->sent_head, flow->headers);
	mbuf->hash.usr = flow->generation;
}

static void put_tail(struct rte_mempool *pool, void *argument, void *object, unsigned int index)
{
	struct rte_mbuf *mbuf = object;

	(void)pool;
	(void)argument;
	(void)index;
	memcpy((uint8_t *)mbuf->buf_addr + RTE_PKTMBUF_HEADROOM, pattern, PART);
}

static struct rte_mempool *pool(const char *kind, const struct flow *flow, uint16_t room)
{
	char name[32];

	snprintf(name, sizeof(name), "%s-%u-%u", kind, flow->from->id, flow->to->id);
	return rte_pktmbuf_pool_create(name, TX_MBUFS, CACHE, 0,
				       (uint16_t)(RTE_PKTMBUF_HEADROOM + room), SOCKET_ID_ANY);
}

int flow_open(struct flow *flow, const struct port *ports, unsigned int from, unsigned int to,
	      const struct flow_options *options)
{
	*flow = (struct flow){ .from = &ports[from], .to = &ports[to] };
	fill_pattern();
	flow->heads = pool("heads", flow, options->offloads ? PART : RTE_MBUF_DEFAULT_DATAROOM);
	if (!flow->heads)
		return -1;
	if (options->offloads) {
		flow->tails = pool("tails", flow, PART);
		if (!flow->tails)
			return -1;
		rte_mempool_obj_iter(flow->tails, put_tail, NULL);
	}
	return 0;
}

/* Have all frames be of `size` bytes from now on; others may be under way. */
void flow_load(struct flow *flow, uint32_t size, const struct flow_options *options)
{
	unsigned int from = flow->from->id, to = flow->to->id;
	uint32_t number = number_of(++flow->generation);
	struct look *look = &flow->looks[number];
	uint8_t *head = flow->sent_head;

	flow->size = look->size = size;
	flow->large = options->offloads;
	flow->headers = ETHER + IPV4 + (flow->large ? TCP : UDP);
	memset(head, 0, sizeof(flow->sent_head));
	memcpy(head, options->gateway, 6);
	put_mac(head + 6, from);
	put16(head + 12, RTE_ETHER_TYPE_IPV4);
	put_ipv4(head, flow, from, to);
	if (flow->large)
		put_tcp(head);
	else
		put_udp(head + ETHER + IPV4, size - ETHER - IPV4);
	put16(head + PORT_AT, FIRST_PORT + number);
	memcpy(look->head, head, sizeof(look->head));
	if (options->routed)
		route(look->head, options->gateway, to);
}

/* Append to `head` what is missing of the frame; less than 0 without mbufs. */
static int add_tails(struct flow *flow, struct rte_mbuf *head)
{
	uint32_t left = flow->size - head->data_len;
	struct rte_mbuf *last = head;

	while (left) {
		struct rte_mbuf *tail = rte_pktmbuf_alloc(flow->tails);

		if (!tail)
			return -1;
		tail->data_len = (uint16_t)RTE_MIN(left, (uint32_t)PART);
		left -= tail->data_len;
		head->nb_segs++;
		last->next = tail;
		last = tail;
	}
	return 0;
}

static int make_large(struct flow *flow, struct rte_mbuf *head)
{
	head->ol_flags = RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_TCP_CKSUM;
	head->l2_len = ETHER;
	head->l3_len = IPV4;
	head->l4_len = TCP;
	head->tso_segsz = SEGMENT_PAYLOAD;
	return add_tails(flow, head);
}

/* Make `count` frames, or none without mbufs. */
unsigned int flow_make(struct flow *flow, struct rte_mbuf **frames, unsigned int count)
{
	uint16_t first = (uint16_t)RTE_MIN(flow->size, (uint32_t)PART);

	if (rte_pktmbuf_alloc_bulk(flow->heads, frames, count))
		return 0;
	for (unsigned int i = 0; i < count; i++) {
		put_head(flow, frames[i]);
		frames[i]->pkt_len = flow->size;
		frames[i]->data_len = first;
		if (flow->large && make_large(flow, frames[i])) {
			rte_pktmbuf_free_bulk(frames, count);
			return 0;
		}
	}
	return count;
}

/* Have a frame say when it was sent. */
void flow_stamp(const struct flow *flow, struct rte_mbuf *frame, uint64_t now)
{
	memcpy(rte_pktmbuf_mtod_offset(frame, uint8_t *, flow->headers), &now, sizeof(now));
}

uint64_t flow_stamp_of(const struct flow *flow, const struct rte_mbuf *frame)
{
	uint64_t stamp;

	memcpy(&stamp, rte_pktmbuf_mtod_offset(frame, const uint8_t *, flow->headers),
	       sizeof(stamp));
	return stamp;
}

/*
 * Whether length and headers are the right ones. Those of a large frame are compared without TCP's
 * checksum, which is still to be computed: DPDK's librte_vhost puts a sum there that leaves the length
 * out. A large one must have come as it was sent, in one piece that is to be segmented.
 */
static inline bool looks_like(const struct flow *flow, const struct rte_mbuf *frame,
			      const struct look *look)
{
	const uint8_t *head = rte_pktmbuf_mtod(frame, const uint8_t *);
	bool large = frame->ol_flags & RTE_MBUF_F_RX_LRO;

	if (frame->pkt_len != look->size || large != flow->large)
		return false;
	if (!large)
		return !memcmp(head, look->head, ETHER + IPV4 + UDP);
	return !memcmp(head, look->head, TCP_CHECKSUM_AT) &&
	       !memcmp(head + TCP_URGENT_AT, look->head + TCP_URGENT_AT,
		       MAX_HEADERS - TCP_URGENT_AT);
}

static bool is_payload_right(const struct flow *flow, const struct rte_mbuf *frame)
{
	uint32_t at = 0, from = flow->headers + STAMP;

	for (const struct rte_mbuf *part = frame; part; part = part->next) {
		uint32_t skip = from > at ? RTE_MIN(from - at, (uint32_t)part->data_len) : 0;
		const uint8_t *data = rte_pktmbuf_mtod(part, const uint8_t *);

		if (memcmp(data + skip, pattern + at + skip, part->data_len - skip))
			return false;
		at += part->data_len;
	}
	return at == flow->size;
}

static bool is_ipv4(const uint8_t *head)
{
	return head[12] == 8 && head[13] == 0;
}

static bool is_late(const struct flow *flow, const struct rte_mbuf *frame, const uint8_t *head)
{
	uint32_t number = get16(head + PORT_AT) - FIRST_PORT;

	return number < GENERATIONS && number != number_of(flow->generation) &&
	       looks_like(flow, frame, &flow->looks[number]);
}

static void count_other(struct flow *flow, const struct rte_mbuf *frame)
{
	const uint8_t *head = rte_pktmbuf_mtod(frame, const uint8_t *);

	if (!is_ipv4(head))
		flow->foreign++;
	else if (is_late(flow, frame, head))
		flow->late++;
	else
		flow->wrong++;
}

/*
 * Count a frame that was received; whether it is what it should be. Length and headers of each are
 * looked at, of some all bytes: a router that is wrong must not look fast.
 */
bool flow_check(struct flow *flow, const struct rte_mbuf *frame, bool thoroughly)
{
	if (likely(looks_like(flow, frame, &flow->looks[number_of(flow->generation)]) &&
		   (!thoroughly || is_payload_right(flow, frame)))) {
		flow->received++;
		return true;
	}
	count_other(flow, frame);
	return false;
}
