/*
 * Frames from NIC A to others: whatever its guest sends and leaves to the device, what arrives must
 * obey the rules of the receiver.
 *
 * The input is the features of A and of the receivers, the MTU and the buffers of these, and a few
 * frames, each with its virtio_net_hdr and with a byte that says what of it is put right: a frame
 * of random bytes gets nowhere. B and C are in A's network, D in another one with B's addresses.
 *
 * The rings are those of a driver that means well, so all that arrives can be taken apart again and
 * be compared with what was sent, by parsers that share nothing with those of the core.
 */
#include "common.h"

#include <stdlib.h>
#include <string.h>

/* A loop over all bytes of a frame, in which there is nothing to find. */
#ifdef __clang__
#define UNINSTRUMENTED __attribute__((no_sanitize("address", "undefined", "coverage")))
#else
#define UNINSTRUMENTED
#endif

enum {
	RING_SIZE = 256,
	RING_BYTES = 0x4000,	/* of guest memory for one ring */
	DESC = 0,
	AVAIL = 0x1000,
	USED = 0x2000,
	DATA = MV_QUEUES * RING_BYTES,
	MEMORY = 256 * 1024,
	ROOM = MEMORY - DATA,
	UNTOUCHED = 0xa5,	/* what a receive buffer is filled with ... */
	MARGIN = 64,		/* ... and how much of it is looked at, after what was written */

	MAX_FRAMES = 4,		/* that are sent */
	MAX_LENGTH = MV_MAX_FRAME + 16,
	MAX_CUTS = 3,
	MAX_ARRIVED = 1024,
	ARENA = 2 << 20,	/* the backlog's bytes and the ring's */
	MAX_TURNS = 600,	/* calls for one packet as long as they say CALL_AGAIN */

	DESC_F_NEXT = 1,
	DESC_F_WRITE = 2,
	DESC_F_INDIRECT = 4,

	TYPE_IPV4 = 0x0800,
	TYPE_IPV6 = 0x86dd,
	UDP_CHECKSUM = 6,
	TCP_CHECKSUM = 16,
};

/* What of a frame is put right, so that more of them get further than the first check. */
enum fix {
	FIX_MAC = 1,
	FIX_ADDRESS = 2,
	FIX_LENGTH = 4,
	FIX_CHECKSUM = 8,
	FIX_OFFLOAD = 16,
	TO_C = 32,
	INDIRECT = 64,
	HUGE_FRAME = 128,	/* otherwise it is lengthened by less than 4 KiB */
};

static const uint64_t SENDER_FEATURES[8] = {
	MV_F_VERSION_1, MV_F_CSUM, MV_F_HOST_TSO4, MV_F_HOST_TSO6, MV_F_HOST_ECN, MV_F_HOST_USO,
	MV_F_INDIRECT_DESC, MV_F_EVENT_IDX,
};
static const uint64_t RECEIVER_FEATURES[8] = {
	MV_F_VERSION_1, MV_F_GUEST_CSUM, MV_F_GUEST_TSO4, MV_F_GUEST_TSO6, MV_F_GUEST_ECN,
	MV_F_GUEST_USO4 | MV_F_GUEST_USO6, MV_F_MRG_RXBUF, MV_F_EVENT_IDX,
};
static const uint8_t gateway[6] = { 0x02, 0, 0, 0, 0, 0x01 };

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

enum { A, B, C, D, GUESTS };

struct guest {
	struct image memory;
	mv_memory *table;
	uint8_t mac[6];
	uint8_t ipv4[4];
	uint8_t ipv6[16];
	/* Of one input: */
	mv_port *port;
	uint64_t features;
	unsigned int mtu;
	uint16_t avail[MV_QUEUES];
	uint16_t seen_used;		/* of the RX ring */
	unsigned int n_buffers;
	uint32_t buffer_size;
	uint32_t cut;			/* where a receive buffer is cut in two; 0: nowhere */
	unsigned int faulty;		/* which buffer is not for writing; n_buffers or more: none */
	uint64_t n_received;
	uint64_t n_expected;
};

static struct guest guests[GUESTS];

/* A frame as it was sent, or as it has arrived. */
struct frame {
	struct mv_net_hdr hdr;
	uint8_t *bytes;
	uint32_t length;
};

static struct frame arrived[MAX_ARRIVED];
static unsigned int n_arrived;
static uint8_t arena[ARENA];
static size_t arena_used;

/* ---- a frame taken apart, for the second time and independently ---- */

struct view {
	bool ipv6;
	uint8_t protocol;
	uint8_t ttl;
	bool fragment;
	bool rerouted;		/* a routing header has segments left */
	uint32_t end;		/* where the packet ends in its frame */
	uint32_t l4;		/* 0: none in this fragment */
	uint32_t payload;	/* of TCP or UDP; 0: neither */
};

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)mv_get16(p) << 16 | mv_get16(p + 2);
}

static bool view_ipv4(struct view *view, const uint8_t *frame, uint32_t length)
{
	const uint8_t *ip = frame + MV_ETH_SIZE;
	uint32_t header;

	if (length < MV_ETH_SIZE + MV_IPV4_SIZE || ip[0] >> 4 != 4)
		return false;
	header = (ip[0] & 15U) * 4;
	view->end = MV_ETH_SIZE + mv_get16(ip + 2);
	view->ttl = ip[8];
	view->protocol = ip[9];
	view->fragment = mv_get16(ip + 6) & 0x3fff;
	if (!(mv_get16(ip + 6) & 0x1fff))
		view->l4 = MV_ETH_SIZE + header;
	return header >= MV_IPV4_SIZE && MV_ETH_SIZE + header <= view->end && view->end <= length;
}

static bool view_ipv6(struct view *view, const uint8_t *frame, uint32_t length)
{
	const uint8_t *ip = frame + MV_ETH_SIZE;
	uint32_t at = MV_ETH_SIZE + MV_IPV6_SIZE, size;

	if (length < at || ip[0] >> 4 != 6)
		return false;
	view->ipv6 = true;
	view->ttl = ip[7];
	view->protocol = ip[6];
	view->end = at + mv_get16(ip + 4);
	if (view->end > length)
		return false;
	for (;; at += size) {
		const uint8_t *header = frame + at;

		switch (view->protocol) {
		case 0:
		case 43:
		case 44:
		case 51:
		case 60:
			break;
		default:
			view->l4 = at;
			return true;
		}
		if (at + 8 > view->end)
			return false;
		size = view->protocol == 44 ? 8 :
		       view->protocol == 51 ? (header[1] + 2U) * 4 : (header[1] + 1U) * 8;
		if (at + size > view->end)
			return false;
		view->rerouted |= view->protocol == 43 && header[3] > 0;
		view->fragment |= view->protocol == 44;
		if (view->protocol == 44 && mv_get16(header + 2) & 0xfff8) {
			view->protocol = header[0];
			return true;
		}
		view->protocol = header[0];
	}
}

/* Whether there is a well-formed IP packet in the frame. */
static bool view_frame(struct view *view, const uint8_t *frame, uint32_t length)
{
	uint32_t header = MV_UDP_SIZE;
	bool good;

	*view = (struct view){ 0 };
	if (length < MV_ETH_SIZE)
		return false;
	if (mv_get16(frame + 12) == TYPE_IPV4)
		good = view_ipv4(view, frame, length);
	else
		good = mv_get16(frame + 12) == TYPE_IPV6 && view_ipv6(view, frame, length);
	if (!good || view->l4 == 0)
		return good;
	if (view->protocol == MV_PROTO_TCP && view->l4 + MV_TCP_SIZE <= view->end)
		header = (frame[view->l4 + 12] >> 4) * 4U;
	else if (view->protocol != MV_PROTO_UDP)
		return true;
	if (view->l4 + header <= view->end)
		view->payload = view->l4 + header;
	return true;
}

/* Bytes as 16-bit words in network order, added one by one (RFC 1071). */
UNINSTRUMENTED static uint32_t words(const uint8_t *bytes, size_t n)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += i & 1 ? bytes[i] : (uint32_t)bytes[i] << 8;
	return sum;
}

static uint32_t folded(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static uint32_t pseudo_header(const struct view *view, const uint8_t *frame)
{
	const uint8_t *ip = frame + MV_ETH_SIZE;
	uint32_t length = view->end - view->l4;
	uint32_t addresses = view->ipv6 ? words(ip + 8, 32) : words(ip + 12, 8);

	return folded(addresses + (length >> 16) + (length & 0xffff) + view->protocol);
}

static uint8_t *checksum_of(const struct view *view, uint8_t *frame)
{
	return frame + view->l4 + (view->protocol == MV_PROTO_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
}

/* ---- guests ---- */

static void prepare(void)
{
	const struct mv_region_spec spec = { .size = MEMORY, .user_addr = UINT64_C(1) << 40 };

	if (guests[A].table)
		return;
	for (unsigned int i = 0; i < GUESTS; i++) {
		struct guest *guest = &guests[i];
		uint8_t last = i == D ? B + 1 : (uint8_t)(i + 1);

		guest->memory = image_new(MEMORY);
		guest->table = map_image(&guest->memory, &spec, 1);
		memcpy(guest->mac, (const uint8_t[]){ 0x52, 0x54, 0, 0, 0, (uint8_t)(i + 1) }, 6);
		memcpy(guest->ipv4, (const uint8_t[]){ 10, 0, 0, last }, 4);
		memcpy(guest->ipv6, (const uint8_t[16]){ 0xfd, [15] = last }, 16);
	}
}

static uint8_t *ring_part(const struct guest *guest, unsigned int queue, uint32_t part)
{
	return guest->memory.bytes + queue * RING_BYTES + part;
}

static void write_desc(const struct guest *guest, unsigned int queue, unsigned int index,
		       const struct desc *desc)
{
	memcpy(ring_part(guest, queue, DESC) + sizeof(*desc) * index, desc, sizeof(*desc));
}

static void make_available(struct guest *guest, unsigned int queue, uint16_t head)
{
	uint8_t *avail = ring_part(guest, queue, AVAIL);

	memcpy(avail + 4 + 2 * (guest->avail[queue] % RING_SIZE), &head, 2);
	guest->avail[queue]++;
	memcpy(avail + 2, &guest->avail[queue], 2);
}

static uint8_t *buffer(const struct guest *guest, unsigned int i)
{
	return guest->memory.bytes + DATA + (size_t)i * guest->buffer_size;
}

static void offer_buffer(struct guest *guest, unsigned int i)
{
	uint64_t addr = DATA + (uint64_t)i * guest->buffer_size;
	struct desc first = { addr, guest->buffer_size, i == guest->faulty ? 0 : DESC_F_WRITE, 0 };
	struct desc second = { addr + guest->cut, guest->buffer_size - guest->cut, DESC_F_WRITE, 0 };

	if (guest->cut) {
		first.len = guest->cut;
		first.flags |= DESC_F_NEXT;
		first.next = (uint16_t)(2 * i + 1);
		write_desc(guest, MV_RX, 2 * i + 1, &second);
	}
	write_desc(guest, MV_RX, 2 * i, &first);
	memset(buffer(guest, i), UNTOUCHED, guest->buffer_size);
	make_available(guest, MV_RX, (uint16_t)(2 * i));
}

static uint64_t features_of(const uint64_t table[8], uint8_t bits)
{
	uint64_t features = 0;

	for (unsigned int n = 0; n < 8; n++)
		features |= bits >> n & 1 ? table[n] : 0;
	return features;
}

static void take_buffers(struct guest *guest, struct input *input)
{
	uint16_t size = take16(input);
	uint8_t count = take8(input), cut = take8(input);

	guest->buffer_size = 1U + size % (unsigned int)ROOM;
	guest->n_buffers = 1 + count % (RING_SIZE / 2);
	if (guest->n_buffers > ROOM / guest->buffer_size)
		guest->n_buffers = ROOM / guest->buffer_size;
	guest->cut = cut < guest->buffer_size ? cut : 0;
	guest->faulty = take8(input);
}

static void start_ring(const struct guest *guest, unsigned int queue, int64_t base)
{
	uint64_t at = (UINT64_C(1) << 40) + queue * RING_BYTES;
	const struct mv_ring_addr addr = { at + DESC, at + USED, at + AVAIL };

	CHECK(mv_ring_start(guest->port, queue, RING_SIZE, &addr, base) == 0);
}

static void start(struct guest *guest, mv_network *network, uint32_t tag, struct input *input)
{
	const struct mv_prefix routes[2] = { host_prefix(MV_IPV4, guest->ipv4),
					     host_prefix(MV_IPV6, guest->ipv6) };
	uint8_t bits = take8(input);

	guest->port = mv_port_new(network, guest->mac, tag);
	CHECK(guest->port && mv_port_set_routes(guest->port, routes, 2) == 0);
	guest->features = features_of(tag == A + 1 ? SENDER_FEATURES : RECEIVER_FEATURES, bits);
	CHECK(mv_port_set_features(guest->port, guest->features) == 0);
	CHECK(mv_port_set_memory(guest->port, guest->table) == 0);
	memset(guest->memory.bytes, 0, DATA);
	guest->n_received = guest->n_expected = 0;
	guest->seen_used = 0;
	for (unsigned int queue = 0; queue < MV_QUEUES; queue++) {
		guest->avail[queue] = 0;
		start_ring(guest, queue, 0);
		CHECK(mv_ring_enable(guest->port, queue, true) == 0);
	}
}

static void start_receiver(struct guest *guest, mv_network *network, uint32_t tag,
			   struct input *input)
{
	start(guest, network, tag, input);
	guest->mtu = 68 + take16(input) % (65536U - 68);
	mv_port_set_mtu(guest->port, guest->mtu);
	take_buffers(guest, input);
	for (unsigned int i = 0; i < guest->n_buffers; i++)
		offer_buffer(guest, i);
}

/* ---- sending ---- */

static void fix_addresses(uint8_t *bytes, bool ipv6, const struct guest *to)
{
	uint8_t *ip = bytes + MV_ETH_SIZE;

	if (ipv6) {
		memcpy(ip + 8, guests[A].ipv6, 16);
		memcpy(ip + 24, to->ipv6, 16);
	} else {
		memcpy(ip + 12, guests[A].ipv4, 4);
		memcpy(ip + 16, to->ipv4, 4);
	}
}

static void fix_lengths(uint8_t *bytes, uint32_t length, bool ipv6)
{
	struct view view;

	if (ipv6)
		mv_put16(bytes + 18, length - MV_ETH_SIZE - MV_IPV6_SIZE);
	else
		mv_put16(bytes + 16, length - MV_ETH_SIZE);
	if (view_frame(&view, bytes, length) && view.protocol == MV_PROTO_UDP && view.payload)
		mv_put16(bytes + view.l4 + 4, length - view.l4);
}

static void fix_checksum(uint8_t *ip, uint32_t room)
{
	uint32_t header = (ip[0] & 15U) * 4;

	if (header > room)
		return;
	mv_put16(ip + 10, 0);
	mv_put16(ip + 10, ~folded(words(ip, header)) & 0xffff);
}

static void fix_offload(struct frame *frame)
{
	struct view view;

	if (!view_frame(&view, frame->bytes, frame->length) || !view.payload)
		return;
	frame->hdr.flags |= MV_HDR_NEEDS_CSUM;
	frame->hdr.csum_start = (uint16_t)view.l4;
	frame->hdr.csum_offset = view.protocol == MV_PROTO_TCP ? TCP_CHECKSUM : UDP_CHECKSUM;
}

static void fix(struct frame *frame, uint8_t what)
{
	const struct guest *to = &guests[what & TO_C ? C : B];
	bool ipv6 = frame->length >= MV_ETH_SIZE && mv_get16(frame->bytes + 12) == TYPE_IPV6;

	if (frame->length < MV_ETH_SIZE + MV_IPV6_SIZE)
		return;
	if (what & FIX_MAC) {
		memcpy(frame->bytes, gateway, 6);
		memcpy(frame->bytes + 6, guests[A].mac, 6);
	}
	if (what & FIX_ADDRESS)
		fix_addresses(frame->bytes, ipv6, to);
	if (what & FIX_LENGTH)
		fix_lengths(frame->bytes, frame->length, ipv6);
	if (what & FIX_CHECKSUM && !ipv6)
		fix_checksum(frame->bytes + MV_ETH_SIZE, frame->length - MV_ETH_SIZE);
	if (what & FIX_OFFLOAD)
		fix_offload(frame);
}

/* The next frame of the input, lengthened beyond what an input can hold. */
static uint8_t take_frame(struct frame *frame, struct input *input)
{
	static uint8_t bytes[MAX_LENGTH], filler[MAX_LENGTH];
	uint8_t what = take8(input);
	uint32_t more = take16(input), length;

	if (filler[1] == 0)
		for (uint32_t i = 0; i < MAX_LENGTH; i++)
			filler[i] = (uint8_t)(i * 7 + (i >> 8));
	if (!(what & HUGE_FRAME))
		more &= 0xfff;
	take(input, &frame->hdr, sizeof(frame->hdr));
	length = take16(input);
	if (length > input->size)
		length = (uint32_t)input->size;
	if (length > MAX_LENGTH)
		length = MAX_LENGTH;
	frame->bytes = bytes;
	frame->length = length + more < MAX_LENGTH ? length + more : MAX_LENGTH;
	take(input, bytes, length);
	memcpy(bytes + length, filler + length, frame->length - length);
	fix(frame, what);
	return what;
}

/* Put the header and the frame into A's memory and its ring, in pieces or through a table. */
static void send_frame(const struct frame *frame, const uint8_t cuts[MAX_CUTS], bool indirect)
{
	struct guest *guest = &guests[A];
	uint32_t header = mv_net_hdr_size(guest->features), total = header + frame->length, at = 0;
	struct desc descs[MAX_CUTS + 1];
	unsigned int n = 0;

	memcpy(guest->memory.bytes + DATA, &frame->hdr, header);
	memcpy(guest->memory.bytes + DATA + header, frame->bytes, frame->length);
	for (; at < total; at += descs[n++].len) {
		uint32_t length = total - at;

		if (n < MAX_CUTS && cuts[n] < length)
			length = cuts[n];
		descs[n] = (struct desc){ DATA + at, length, DESC_F_NEXT, (uint16_t)(n + 1) };
	}
	descs[n - 1].flags = 0;
	if (indirect && guest->features & MV_F_INDIRECT_DESC) {
		struct desc table = { MEMORY - sizeof(descs), (uint32_t)(n * sizeof(descs[0])),
				      DESC_F_INDIRECT, 0 };

		memcpy(guest->memory.bytes + table.addr, descs, sizeof(descs));
		write_desc(guest, MV_TX, 0, &table);
	} else {
		for (unsigned int i = 0; i < n; i++)
			write_desc(guest, MV_TX, i, &descs[i]);
	}
	make_available(guest, MV_TX, 0);
}

/* ---- receiving ---- */

static void append(struct frame *frame, const uint8_t *from, uint32_t length)
{
	CHECK(arena_used + length <= ARENA);
	memcpy(arena + arena_used, from, length);
	arena_used += length;
	frame->length += length;
}

/* Whether a frame may have been begun in buffers that others got then. */
static bool has_given_up_one(const struct guest *guest)
{
	struct mv_stats stats;

	mv_port_stats(guest->port, &stats);
	return lost_to_guest(&stats) > 0;
}

/* The next used buffer, which must be the next that was given; returns the bytes written to it. */
static uint32_t take_used(struct guest *guest, unsigned int *i)
{
	const uint8_t *entry = ring_part(guest, MV_RX, USED) + 4 +
			       8 * (size_t)(guest->seen_used % RING_SIZE);
	uint32_t id, length;

	memcpy(&id, entry, 4);
	memcpy(&length, entry + 4, 4);
	*i = guest->seen_used % guest->n_buffers;
	CHECK(id == 2 * *i && length <= (*i == guest->faulty ? 0 : guest->buffer_size));
	/* Of a frame that was begun in vain, anything may have been written, and more than the next takes. */
	for (uint32_t at = length; length > 0 && at < guest->buffer_size && at < length + MARGIN; at++)
		CHECK(buffer(guest, *i)[at] == UNTOUCHED || has_given_up_one(guest));
	guest->seen_used++;
	return length;
}

static uint16_t used_count(const struct guest *guest)
{
	uint16_t index;

	memcpy(&index, ring_part(guest, MV_RX, USED) + 2, 2);
	return (uint16_t)(index - guest->seen_used);
}

/* One frame from as many buffers as its header says, all but the last of them full. */
static void take_arrived(struct guest *guest)
{
	uint32_t header = mv_net_hdr_size(guest->features), length;
	struct frame *frame = &arrived[n_arrived];
	unsigned int i, n = 1;

	length = take_used(guest, &i);
	/* Given back empty: too small for the header, no buffer at all, or before such a one. */
	if (length == 0) {
		CHECK(guest->buffer_size < header || guest->faulty < guest->n_buffers);
		offer_buffer(guest, i);
		return;
	}
	CHECK(length >= header && n_arrived < MAX_ARRIVED);
	*frame = (struct frame){ .bytes = arena + arena_used };
	memcpy(&frame->hdr, buffer(guest, i), header);
	if (header == sizeof(frame->hdr))
		n = frame->hdr.num_buffers;
	CHECK(n == 1 || (n > 1 && guest->features & MV_F_MRG_RXBUF));
	append(frame, buffer(guest, i) + header, length - header);
	offer_buffer(guest, i);
	while (--n > 0) {
		CHECK(length == guest->buffer_size && used_count(guest) > 0);
		length = take_used(guest, &i);
		CHECK(length > 0);
		append(frame, buffer(guest, i), length);
		offer_buffer(guest, i);
	}
	n_arrived++;
	guest->n_received++;
}

static void take_all(struct guest *guest)
{
	CHECK(used_count(guest) <= guest->n_buffers);
	while (used_count(guest) > 0)
		take_arrived(guest);
}

static void flush(struct guest *guest)
{
	int next = MV_NEXT_CALL_AGAIN;

	for (unsigned int n = 0; n < MAX_TURNS && next == MV_NEXT_CALL_AGAIN; n++) {
		next = mv_port_flush(guest->port, 0);
		CHECK(next >= MV_NEXT_KICK && next <= MV_NEXT_MORE_BUFFERS);
	}
}

/* Take everything back and give it anew, until nothing waits; give up on what would wait on. */
static void receive(struct guest *guest)
{
	unsigned int waiting, before;

	take_all(guest);
	while ((before = mv_port_backlog(guest->port)) > 0) {
		flush(guest);
		take_all(guest);
		waiting = mv_port_backlog(guest->port);
		if (waiting < before)
			continue;
		mv_port_drop_first(guest->port, 0);
		if (mv_port_backlog(guest->port) < waiting)
			continue;
		/* Frames wait as long as all buffers are too small for the header. */
		CHECK(guest->buffer_size < mv_net_hdr_size(guest->features));
		start_ring(guest, MV_RX, mv_ring_stop(guest->port, MV_RX));
	}
}

/* ---- what must have happened to a packet ---- */

/* How a packet gets to its receiver, found from the rules and not from the core's code. */
struct fate {
	enum { WHOLE, SEGMENTS, FRAGMENTS } form;
	uint32_t pieces;
	uint32_t payload;	/* where what is cut up begins */
	uint32_t size;		/* bytes of it in each piece */
};

static bool takes_gso(const struct guest *guest, const struct frame *sent, const struct view *view)
{
	uint64_t needed = MV_F_GUEST_CSUM;

	if (view->protocol == MV_PROTO_TCP)
		needed |= view->ipv6 ? MV_F_GUEST_TSO6 : MV_F_GUEST_TSO4;
	else
		needed |= view->ipv6 ? MV_F_GUEST_USO6 : MV_F_GUEST_USO4;
	if (sent->hdr.gso_type & MV_GSO_ECN)
		needed |= MV_F_GUEST_ECN;
	return (guest->features & needed) == needed;
}

static struct fate fate_of(const struct frame *sent, const struct view *view, const struct guest *to)
{
	struct fate fate = { .form = WHOLE, .pieces = 1 };
	uint32_t ip_size = view->end - MV_ETH_SIZE, total;

	if (sent->hdr.gso_type != MV_GSO_NONE && view->end - view->payload > sent->hdr.gso_size) {
		total = view->end - view->payload;
		if (takes_gso(to, sent, view))
			return fate;
		fate.form = SEGMENTS;
		fate.payload = view->payload;
		fate.size = sent->hdr.gso_size;
	} else if (!view->ipv6 && ip_size > to->mtu) {
		uint32_t header = (sent->bytes[MV_ETH_SIZE] & 15U) * 4;

		fate.form = FRAGMENTS;
		fate.payload = MV_ETH_SIZE + header;
		fate.size = (to->mtu - header) / 8 * 8;
		total = ip_size - header;
		/* The last one may use the whole MTU. */
		for (fate.pieces = 1; header + total > to->mtu; fate.pieces++)
			total -= fate.size;
		return fate;
	} else {
		return fate;
	}
	fate.pieces = (total + fate.size - 1) / fate.size;
	return fate;
}

/* The header has nothing in it that was not negotiated, and what it says fits the frame. */
static void check_header(const struct guest *to, const struct frame *frame, const struct view *view)
{
	const struct mv_net_hdr *hdr = &frame->hdr;
	unsigned int gso = hdr->gso_type & ~(unsigned int)MV_GSO_ECN;

	CHECK(hdr->flags == 0 || hdr->flags == MV_HDR_NEEDS_CSUM);
	if (!hdr->flags) {
		CHECK(hdr->gso_type == MV_GSO_NONE && hdr->hdr_len == 0 && hdr->gso_size == 0);
		CHECK(hdr->csum_start == 0 && hdr->csum_offset == 0);
		return;
	}
	CHECK(to->features & MV_F_GUEST_CSUM && !view->fragment && view->payload);
	CHECK(hdr->csum_start == view->l4);
	CHECK(hdr->csum_offset == (view->protocol == MV_PROTO_TCP ? TCP_CHECKSUM : UDP_CHECKSUM));
	if (hdr->gso_type == MV_GSO_NONE) {
		CHECK(hdr->hdr_len == 0 && hdr->gso_size == 0);
		return;
	}
	CHECK(takes_gso(to, frame, view));
	CHECK(gso == (view->protocol == MV_PROTO_UDP ? MV_GSO_UDP_L4 :
		      view->ipv6 ? MV_GSO_TCPV6 : MV_GSO_TCPV4));
	CHECK(hdr->hdr_len == view->payload && hdr->gso_size > 0);
	CHECK(hdr->gso_size < frame->length - view->payload);
}

/* As long as the receiver's link allows: the packet, or each of its segments. */
static void check_size(const struct guest *to, const struct frame *frame, const struct view *view)
{
	uint32_t most = view->ipv6 && to->mtu < MV_IPV6_MTU ? MV_IPV6_MTU : to->mtu;

	if (frame->hdr.gso_type == MV_GSO_NONE)
		CHECK(frame->length - MV_ETH_SIZE <= most);
	else
		CHECK(view->payload - MV_ETH_SIZE + frame->hdr.gso_size <= most);
}

/* Ethernet and IP are those of a router's next hop. */
static void check_hop(const struct guest *to, const struct frame *frame, const struct view *view,
		      const struct view *sent)
{
	const uint8_t *ip = frame->bytes + MV_ETH_SIZE;

	CHECK(!memcmp(frame->bytes, to->mac, 6) && !memcmp(frame->bytes + 6, gateway, 6));
	CHECK(view->ipv6 == sent->ipv6 && view->protocol == sent->protocol);
	CHECK(view->end == frame->length && view->ttl + 1 == sent->ttl && view->ttl > 0);
	if (view->ipv6) {
		CHECK(!memcmp(ip + 8, guests[A].ipv6, 16) && !memcmp(ip + 24, to->ipv6, 16));
		return;
	}
	CHECK(!memcmp(ip + 12, guests[A].ipv4, 4) && !memcmp(ip + 16, to->ipv4, 4));
	CHECK(folded(words(ip, (ip[0] & 15U) * 4)) == 0xffff);
}

/* A checksum that was left to the device is whole, or left to the receiver, who has agreed. */
static void check_transport(struct frame *frame, const struct view *view)
{
	const uint8_t *field = checksum_of(view, frame->bytes);
	uint32_t pseudo = pseudo_header(view, frame->bytes);

	if (frame->hdr.flags) {
		CHECK(frame->hdr.gso_type != MV_GSO_NONE || mv_get16(field) == pseudo);
		return;
	}
	CHECK(folded(pseudo + words(frame->bytes + view->l4, view->end - view->l4)) == 0xffff);
	CHECK(view->protocol != MV_PROTO_UDP || mv_get16(field) != 0);
}

/* Copy the fields that a hop changes, so that all others can be compared. */
static void copy_changed(uint8_t *expected, const struct frame *frame, const struct view *view)
{
	memcpy(expected, frame->bytes, 12);
	if (view->ipv6) {
		expected[21] = frame->bytes[21];
	} else {
		expected[22] = frame->bytes[22];
		memcpy(expected + 24, frame->bytes + 24, 2);
	}
}

static void check_whole(const struct frame *sent, const struct view *was, struct frame *frame,
			const struct view *view)
{
	static uint8_t expected[MAX_LENGTH];

	memcpy(expected, sent->bytes, was->end);
	copy_changed(expected, frame, view);
	if (sent->hdr.flags & MV_HDR_NEEDS_CSUM) {
		if (!frame->hdr.flags && !was->rerouted)
			check_transport(frame, view);
		memcpy(checksum_of(was, expected), checksum_of(view, frame->bytes), 2);
	}
	CHECK(frame->length == was->end && !memcmp(expected, frame->bytes, was->end));
}

/* Which segment it is; -1: that cannot be told (UDP over IPv6 has no numbers). */
static int64_t segment_number(const struct frame *sent, const struct view *was,
			      const struct frame *frame)
{
	if (was->protocol == MV_PROTO_TCP)
		return (get32(frame->bytes + was->l4 + 4) - get32(sent->bytes + was->l4 + 4)) /
		       sent->hdr.gso_size;
	if (!was->ipv6)
		return (uint16_t)(mv_get16(frame->bytes + 18) - mv_get16(sent->bytes + 18));
	return -1;
}

static void check_segment(const struct frame *sent, const struct view *was, struct frame *frame,
			  const struct view *view, const struct fate *fate, uint32_t number)
{
	uint8_t expected[MV_HEAD];
	uint32_t offset = number * fate->size, left = was->end - was->payload - offset;
	uint32_t length = left < fate->size ? left : fate->size;

	CHECK(number < fate->pieces && view->payload == was->payload);
	CHECK(frame->length == was->payload + length);
	CHECK(!memcmp(frame->bytes + view->payload, sent->bytes + was->payload + offset, length));
	memcpy(expected, sent->bytes, was->payload);
	copy_changed(expected, frame, view);
	if (was->ipv6) {
		mv_put16(expected + 18, frame->length - MV_ETH_SIZE - MV_IPV6_SIZE);
	} else {
		mv_put16(expected + 16, frame->length - MV_ETH_SIZE);
		mv_put16(expected + 18, mv_get16(expected + 18) + number);
	}
	memcpy(checksum_of(was, expected), checksum_of(view, frame->bytes), 2);
	if (was->protocol == MV_PROTO_UDP) {
		mv_put16(expected + was->l4 + 4, MV_UDP_SIZE + length);
	} else {
		uint32_t sequence = get32(expected + was->l4 + 4) + offset;

		mv_put16(expected + was->l4 + 4, sequence >> 16);
		mv_put16(expected + was->l4 + 6, sequence & 0xffff);
		/* CWR is the first one's, FIN and PSH are the last one's (RFC 3168, 6.1.2). */
		expected[was->l4 + 13] &= (uint8_t)~((number > 0 ? 0x80U : 0U) |
						     (number + 1 < fate->pieces ? 0x09U : 0U));
	}
	CHECK(!memcmp(expected, frame->bytes, was->payload));
	check_transport(frame, view);
}

/* RFC 791, 3.2: the offset says what it holds, and only the last one has no more after it. */
static void check_fragment(const struct frame *sent, const struct view *was, struct frame *frame,
			   const struct fate *fate)
{
	uint32_t from = mv_get16(sent->bytes + 20), to = mv_get16(frame->bytes + 20);
	uint32_t offset = ((to & 0x1fff) - (from & 0x1fff)) * 8;
	uint32_t at = fate->payload + offset, length = frame->length - fate->payload;
	bool last = at + length == was->end;
	uint8_t filled[2] = { 0 };
	uint8_t *field = NULL;

	/* The reserved flag is passed on (RFC 1812, 4.2.2.3). */
	CHECK((to & 0xc000) == (from & 0x8000) && at < was->end && at + length <= was->end);
	CHECK(offset % fate->size == 0 && (last || length == fate->size));
	CHECK(!(to & 0x2000) == (last && !(from & 0x2000)));
	CHECK((frame->bytes[MV_ETH_SIZE] & 15U) * 4 == fate->payload - MV_ETH_SIZE);
	CHECK(mv_get16(frame->bytes + 18) == mv_get16(sent->bytes + 18) && !frame->hdr.flags);
	/* The checksum that was left to the device is somewhere in the first fragment, or in two. */
	if (sent->hdr.flags & MV_HDR_NEEDS_CSUM) {
		field = checksum_of(was, sent->bytes);
		memcpy(filled, field, 2);
		for (uint32_t i = 0; i < 2; i++) {
			uint32_t place = (uint32_t)(field - sent->bytes) + i;

			if (place >= at && place < at + length)
				field[i] = frame->bytes[fate->payload + place - at];
		}
	}
	CHECK(!memcmp(frame->bytes + fate->payload, sent->bytes + at, length));
	if (field)
		memcpy(field, filled, 2);
}

static void check_arrived(const struct frame *sent, const struct view *was, const struct guest *to,
			  const struct fate *fate)
{
	int64_t last = -1;

	for (unsigned int i = 0; i < n_arrived; i++) {
		struct frame *frame = &arrived[i];
		struct view view;
		int64_t number;

		CHECK(view_frame(&view, frame->bytes, frame->length));
		check_header(to, frame, &view);
		check_size(to, frame, &view);
		check_hop(to, frame, &view, was);
		switch (fate->form) {
		case WHOLE:
			check_whole(sent, was, frame, &view);
			break;
		case SEGMENTS:
			number = segment_number(sent, was, frame);
			if (number < 0 && n_arrived < fate->pieces)
				break;
			number = number < 0 ? i : number;
			CHECK(number > last && number < fate->pieces);
			check_segment(sent, was, frame, &view, fate, (uint32_t)number);
			last = number;
			break;
		case FRAGMENTS:
			check_fragment(sent, was, frame, fate);
			break;
		}
	}
}

/* ---- one frame after another ---- */

/* Where A's packet has gone, if it was sent on at all: NULL otherwise. */
static struct guest *receiver_of(const struct frame *sent, const struct view *view)
{
	for (unsigned int i = B; i <= C; i++)
		if (view->ipv6 ? !memcmp(sent->bytes + 38, guests[i].ipv6, 16) :
				 !memcmp(sent->bytes + 30, guests[i].ipv4, 4))
			return &guests[i];
	return NULL;
}

/* Drain A until its ring is empty; returns how many frames were sent on. */
static uint64_t drain(void)
{
	static uint8_t punts[MV_PUNT_BYTES];
	struct mv_stats before, after;
	struct mv_drained drained;
	int next = MV_NEXT_CALL_AGAIN;

	mv_port_stats(guests[A].port, &before);
	for (unsigned int n = 0; n < MAX_TURNS && next == MV_NEXT_CALL_AGAIN; n++) {
		next = mv_port_drain(fuzz_worker(), guests[A].port, 0, 0, punts, &drained);
		check_drained(next, &drained, GUESTS);
	}
	CHECK(next == MV_NEXT_KICK);
	mv_port_stats(guests[A].port, &after);
	CHECK(after.tx_frames == before.tx_frames + 1);
	CHECK(after.tx_frames == after.routed + after.punts + lost_from_guest(&after));
	CHECK(after.rx_frames == 0 && mv_port_backlog(guests[A].port) == 0);
	return after.routed - before.routed;
}

/* Everything that was for a guest has arrived, or is counted. */
static void check_accounts(const struct guest *guest)
{
	struct mv_stats stats;

	mv_port_stats(guest->port, &stats);
	CHECK(!mv_ring_broken(guest->port, MV_RX));
	CHECK(stats.rx_frames == guest->n_received);
	CHECK(guest->n_expected == stats.rx_frames + lost_to_guest(&stats));
	CHECK(lost_from_guest(&stats) == 0 && stats.tx_frames == 0);
}

static void exchange(const struct frame *sent)
{
	uint64_t routed = drain();
	struct guest *to = NULL;
	struct view was;
	struct fate fate = { .form = WHOLE };

	if (routed) {
		CHECK(view_frame(&was, sent->bytes, sent->length));
		to = receiver_of(sent, &was);
		CHECK(to);
		fate = fate_of(sent, &was, to);
		to->n_expected += fate.pieces;
	}
	for (unsigned int i = B; i < GUESTS; i++) {
		n_arrived = 0;
		arena_used = 0;
		receive(&guests[i]);
		CHECK(n_arrived == 0 || &guests[i] == to);
		if (n_arrived > 0)
			check_arrived(sent, &was, to, &fate);
		check_accounts(&guests[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };
	mv_network *networks[2] = { mv_network_new(65535), mv_network_new(65535) };

	prepare();
	CHECK(networks[0] && networks[1]);
	start(&guests[A], networks[0], A + 1, &input);
	for (unsigned int i = B; i < GUESTS; i++)
		start_receiver(&guests[i], networks[i == D], i + 1, &input);
	for (unsigned int n = 0; input.size > 0 && n < MAX_FRAMES; n++) {
		struct frame frame;
		uint8_t cuts[MAX_CUTS];
		uint8_t what = take_frame(&frame, &input);

		take(&input, cuts, sizeof(cuts));
		send_frame(&frame, cuts, what & INDIRECT);
		exchange(&frame);
	}
	for (unsigned int i = 0; i < GUESTS; i++)
		mv_port_free(guests[i].port);
	for (unsigned int i = 0; i < 2; i++)
		mv_network_free(networks[i]);
	return 0;
}
