/*
 * What the files of the core share with one another and with nobody else.
 *
 * A trick has its figure beside it: the processor time that a frame takes without it, or with another
 * value, in units of what it takes as it is. Two builds in turns, the median of nine rounds or more, in
 * which the same build twice differs by up to 0.03. Of 2026-11-29, on two cores of an Intel Xeon
 * (Emerald Rapids, a virtual machine that others used too); a line's round trip between them was 120 ns.
 * "DPDK" says that a driver of DPDK with mergeable buffers was at the other end, on the other core; all
 * else is one core alone, which has written all lines itself.
 */
#ifndef MVIRT_CORE_H
#define MVIRT_CORE_H

/* preadv2, file seals. Each file of the core includes this header first. */
#define _GNU_SOURCE

#include "mvirt.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "virtio 1.x is little endian and so are the hosts this core is written for");

/* Keeps the compiler from loading what was copied again, from where it can change. */
static inline void mv_load_once(void)
{
	__asm__ volatile("" : : : "memory");
}

/* Counters are read at any time by any thread. This is for those that one thread at a time writes. */
static inline void mv_count(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* And this for those that several may write. */
static inline void mv_count_shared(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t mv_now_ns(void);

/* Processor time of this thread, in nanoseconds. */
uint64_t mv_thread_ns(void);

/* Who writes on a cache line of its own slows nobody else down. */
enum { MV_CACHE_LINE = 64 };

/* A page of the host, and what sizes and offsets of regions must be a multiple of. */
enum { MV_PAGE = 4096 };

/* ---- debt.c: time that the kernel takes for one NIC, and everybody waits ---- */

/* One for each port; all fields are atomic. */
struct mv_debt {
	uint64_t suspect_until;	/* of mv_now_ns(): until then processor time is measured too */
	uint64_t due_until;	/* and until then nothing slow may be done for the port again */
	uint64_t slow_calls;	/* in this debt */
	uint64_t slow_ever;	/* and in all */
};

/*
 * mv_event_write() on behalf of a port, which owes for the time that it takes; -EBUSY: it owes too
 * much.
 */
int mv_debt_signal(struct mv_debt *debt, int fd);

/* Whether the port owes so much that it must not be signalled to. */
bool mv_debt_is_too_high(const struct mv_debt *debt);

/* ---- memory.c ---- */

/* One mapping; owned by all the tables that hold it, or by whoever has made it. */
struct mv_region {
	uint64_t guest_addr;
	uint64_t user_addr;
	uint64_t size;
	uint64_t mmap_offset;
	uint8_t *host;		/* the region's first byte */
	uint8_t *map;		/* the mapping: may begin before host and end after the region; NULL: not yet */
	size_t map_size;
	size_t page;		/* the file's */
	bool watched;
	unsigned int watch;	/* slot in the SIGBUS table */
	unsigned int tables;
	struct mv_region *next;	/* to be unmapped after this one */
};

struct mv_memory {
	int fault_fd;
	unsigned int n_regions;
	struct mv_region *regions[MV_MAX_REGIONS];
};

/*
 * Where guest address addr is in our address space, and in *run how many bytes (1..length) may be
 * used there; NULL when the address is in no region. A buffer that crosses adjacent regions takes
 * several calls.
 */
static inline uint8_t *mv_memory_guest(const mv_memory *memory, uint64_t addr, uint32_t length,
				       uint32_t *run)
{
	for (unsigned int i = 0; i < memory->n_regions; i++) {
		const struct mv_region *region = memory->regions[i];
		uint64_t offset = addr - region->guest_addr;

		if (offset < region->size) {
			uint64_t left = region->size - offset;

			*run = left < length ? (uint32_t)left : length;
			return region->host + offset;
		}
	}
	return NULL;
}

/* Where user addresses addr..addr+length-1 are; NULL unless they lie within one region. */
uint8_t *mv_memory_user(const mv_memory *memory, uint64_t addr, uint64_t length);

/* Copy from guest memory: 0, or -EFAULT with an unmapped byte in the range. */
int mv_memory_read(const mv_memory *memory, uint64_t addr, void *into, uint32_t length);

/* ---- sigbus.c ---- */

/* Guard map..map+size, made of pages of this size: the slot's number, -ENOSPC, or what sigaction said. */
int mv_sigbus_watch(void *map, size_t size, size_t page, int fault_fd);
void mv_sigbus_unwatch(unsigned int slot);

/* ---- vring.c, packed.c: virtqueues seen from the device (virtio 1.2, 2.7 and 2.8) ---- */

/* A chain that was taken from a packed ring; the driver cannot see it in the ring yet. */
struct mv_taken {
	uint32_t written;
	uint16_t id;
	uint16_t slots;		/* descriptors of the ring that it takes up */
};

enum {
	/* Taken and not yet published; a frame in mergeable buffers takes up to MV_MAX_CHAIN. */
	MV_MAX_TAKEN = 2 * MV_MAX_CHAIN,
};

/*
 * In a packed ring the driver event area is at `avail` and the device event area at `used`, and where
 * a split ring has indices there are positions: a slot, and in bit 15 a wrap counter.
 */
struct mv_ring {
	_Alignas(MV_CACHE_LINE) bool packed;
	unsigned int size;
	struct mv_ring_addr addr;	/* as the frontend gave them, for a new translation */
	uint8_t *desc;
	uint8_t *avail;
	uint8_t *used;
	uint16_t last_avail;		/* next available entry to look at */
	uint16_t used_idx;		/* next used entry to write; private, so no guest can bend it */
	uint16_t published;		/* the used index that the driver can see */
	uint16_t signalled;		/* the published index when a call was last considered */
	bool signalled_valid;
	bool running;
	bool enabled;
	bool broken;
	bool armed;			/* a kick was asked for */
	bool refused;			/* the driver was told that none is needed ... */
	uint16_t refused_at;		/* ... when last_avail was this */
	unsigned int most;		/* entries that the driver has had available at once */
	bool starved;			/* RX: a frame needs more than what was available ... */
	uint16_t starved_at;		/* ... up to here */
	int call_fd;
	int err_fd;
	struct mv_debt *debt;		/* the port's */
	struct mv_taken *taken;		/* packed: from `published` on ... */
	unsigned int n_taken;
	unsigned int taken_slots;	/* ... and all their slots together */
	unsigned int untold;		/* packed: slots published since a call was last considered */
	unsigned int looked;		/* packed: slots from last_avail on that were available ... */
	unsigned int counted;		/* ... and the chains that end in them */
};

/* How many chains of a packed ring may be taken before they are published. */
static inline unsigned int mv_most_taken(const struct mv_ring *ring)
{
	return ring->size < MV_MAX_TAKEN ? ring->size : MV_MAX_TAKEN;
}

/* What the driver accepted, as the ring code needs it. */
struct mv_ring_features {
	bool event_idx;
	bool indirect;
};

/* A buffer takes one segment more for each region that it goes on in. */
enum { MV_MAX_SEGMENTS = MV_MAX_CHAIN + MV_MAX_REGIONS };

struct mv_segment {
	uint8_t *host;
	uint32_t length;
};

/* One descriptor chain, copied and translated. */
struct mv_chain {
	uint16_t head;		/* packed: the buffer's id, whatever the driver wrote there */
	uint16_t slots;		/* packed: descriptors of the ring; 1 with an indirect table */
	bool faulty;		/* wrong direction, outside memory or too long: complete it with 0 */
	unsigned int n_descs;	/* looked at, in both tables */
	unsigned int n_segments;
	uint64_t length;
	struct mv_segment segments[MV_MAX_SEGMENTS + 1];	/* one more for private bytes in front */
};

enum mv_direction { MV_FROM_DRIVER, MV_TO_DRIVER };

/* A chain that is one descriptor of the ring, within one region; copied, checked and translated. */
struct mv_slot {
	uint8_t *host;		/* NULL: this is another kind of chain */
	uint32_t length;
	uint16_t head;
};

/*
 * So many are looked at, and shown to the drivers when they are done (DPDK; 64 and 1500 bytes: one at a
 * time, split rings 2.2 and 1.8, packed ones 2.9 and 2.1; 8 at a time 0.99 to 1.10, 64 at a time 1.0).
 */
enum { MV_AHEAD = 32 };

/*
 * The next chains, looked at together: while one is worked on, memory fetches what the others will
 * need. Nothing is taken by that, and who finds NULL for a chain peeks at it in its turn. Whoever
 * takes a chain says so by mv_ahead_took().
 */
struct mv_ahead {
	unsigned int n;
	unsigned int next;	/* the slot of the ring's next chain; n: it was not looked at */
	struct mv_slot slots[MV_AHEAD];
};

int mv_ring_translate(struct mv_ring *ring, const mv_memory *memory, bool packed,
		      unsigned int size, const struct mv_ring_addr *addr);
void mv_ring_begin(struct mv_ring *ring, int64_t base);

/* Where the ring stands, as GET_VRING_BASE says it. */
int64_t mv_ring_base(const struct mv_ring *ring);

/*
 * Chains that can be taken, 0..size; marks the ring broken when the driver lies. Of a packed ring
 * they are counted, so there may be more than it says, though never when it says 0 and nothing is
 * taken and unpublished.
 */
unsigned int mv_ring_available(struct mv_ring *ring);

/*
 * Copy and translate the next chain without taking it: mv_ring_take() does that. False: the ring
 * is broken now. Needs mv_ring_available() > 0.
 */
bool mv_ring_peek(struct mv_ring *ring, struct mv_ring_features features, const mv_memory *memory,
		  enum mv_direction direction, struct mv_chain *chain);

/* Look at the next n chains (MV_AHEAD at most), which must be available. */
void mv_ring_look_ahead(const struct mv_ring *ring, const mv_memory *memory,
			enum mv_direction direction, unsigned int n, struct mv_ahead *ahead);

/* The ring's next chain, if it is one of those that were looked at, and as simple as a slot. */
static inline const struct mv_slot *mv_ahead_next(const struct mv_ahead *ahead)
{
	if (ahead->next >= ahead->n || !ahead->slots[ahead->next].host)
		return NULL;
	return &ahead->slots[ahead->next];
}

/* The next chain was taken. What was looked at behind it is no chain's beginning if it took up several. */
static inline void mv_ahead_took(struct mv_ahead *ahead, uint16_t slots)
{
	if (slots == 1)
		ahead->next++;
	else
		ahead->n = 0;
}

/*
 * Take the next chain: `head` and `slots` as in the copy of it. It is in the used ring then, not yet
 * visible to the driver.
 */
void mv_ring_take(struct mv_ring *ring, uint16_t head, uint16_t slots, uint32_t written);

/* Undo the last n takes; none of them may have been published. */
void mv_ring_untake(struct mv_ring *ring, unsigned int n);

/* Give the buffers of the last n takes back empty; none of them may have been published. */
void mv_ring_void(struct mv_ring *ring, unsigned int n);

/* Make the used entries visible to a driver that polls; mv_ring_publish() still has to follow. */
void mv_ring_show(struct mv_ring *ring);

/* Make the used entries visible and interrupt the driver if it wants that: true if it was. */
bool mv_ring_publish(struct mv_ring *ring, struct mv_ring_features features);

/*
 * Whether the driver may still wait for an interrupt about what is published: with EVENT_IDX, the
 * used index has passed used_event within the last round; without, there are used entries, and the
 * driver wants interrupts.
 */
bool mv_ring_owes_call(const struct mv_ring *ring, struct mv_ring_features features);

/* Interrupt the driver: whether it was. Breaks the ring if that takes too long too often. */
bool mv_ring_call(struct mv_ring *ring);

/*
 * Tell the driver that no kick is needed until mv_ring_ask_for_kick(). May be called again and again:
 * guest memory is written to only if the driver has not been told yet, for it reads that line each
 * time that it has published.
 */
void mv_ring_refuse_kicks(struct mv_ring *ring, struct mv_ring_features features);

/* Whether there are entries beyond `seen`, a value that last_avail had. */
bool mv_ring_goes_beyond(const struct mv_ring *ring, uint16_t seen);

/*
 * Ask for a kick once there are entries beyond `seen`; false when they are there already, and then
 * none was asked for.
 */
bool mv_ring_ask_for_kick(struct mv_ring *ring, struct mv_ring_features features, uint16_t seen);

void mv_ring_break(struct mv_ring *ring);

/* Copy up to length bytes that start `skip` bytes into the chain; returns how many. */
uint32_t mv_chain_read(const struct mv_chain *chain, uint32_t skip, void *into, uint32_t length);
uint32_t mv_chain_write(const struct mv_chain *chain, uint32_t skip, const void *from,
			uint32_t length);

/* Where reading a chain forward has got to. */
struct mv_reader {
	const struct mv_chain *chain;	/* NULL: there is nothing to read */
	unsigned int segment;
	uint32_t offset;		/* in that segment */
};

struct mv_reader mv_reader_at(const struct mv_chain *chain, uint32_t skip);

void mv_reader_skip(struct mv_reader *reader, uint32_t length);

/* Copy the next bytes, as many as `length` or as there are; returns how many. */
uint32_t mv_reader_read(struct mv_reader *reader, void *into, uint32_t length);

/* The same where both ends may be the same bytes: two guests may share memory. */
void mv_reader_move(struct mv_reader *reader, uint8_t *into, uint32_t length);

/* The same into another chain, from `skip` bytes into that on. */
void mv_reader_copy(struct mv_reader *from, const struct mv_chain *to, uint32_t skip,
		    uint32_t length);

/* ---- checksum.c: the Internet checksum (RFC 1071) ---- */

/* Whether an IPv4 header without options, as three numbers, has the right checksum: it adds up to -0. */
static inline bool mv_ipv4_sum_is_right(uint64_t first, uint64_t second, uint32_t last)
{
	uint64_t sum = (first & 0xffffffff) + (first >> 32) + (second & 0xffffffff) + (second >> 32) +
		       last;

	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16) == 0xffff;
}

/*
 * The checksum of an IPv4 header whose TTL becomes one less (RFC 1624, equation 3): HC' =
 * ~(~HC + ~m + m').
 */
static inline unsigned int mv_ipv4_sum_of_hop(unsigned int checksum)
{
	uint32_t sum = (~checksum & 0xffff) + 0xfeff;

	return ~(sum + (sum >> 16)) & 0xffff;
}

/* A sum of 16-bit words in host order; bytes are added in the order of the data. */
struct mv_sum {
	uint64_t sum;
	bool odd;		/* half a word is in */
};

void mv_sum_add(struct mv_sum *sum, const void *data, size_t length);

/* Add the next bytes of a chain, as many as `length` or as there are. */
void mv_sum_read(struct mv_sum *sum, struct mv_reader *from, uint32_t length);

/* The checksum field for data with this sum; host order, so to be stored as it is. */
uint16_t mv_sum_finish(const struct mv_sum *sum);

/* ---- nethdr.c: virtio_net_hdr (virtio 1.2, 5.1.6) ---- */

struct mv_net_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers;	/* absent from the 10-byte legacy header */
};

_Static_assert(sizeof(struct mv_net_hdr) == 12, "virtio_net_hdr_v1");

enum { MV_NET_HDR_NUM_BUFFERS = offsetof(struct mv_net_hdr, num_buffers) };

/*
 * Store the header of a frame in front of it, unless a driver that uses its buffers again has the very
 * same there from an earlier one. Of a line that nobody writes to both processors keep a copy; a store
 * takes it away from the driver each time, which has to fetch it again where it reads num_buffers. With
 * DPDK's driver, mergeable buffers and 64 bytes on packed rings the backend needs 0.66 of its time so.
 *
 * What is compared can change at once: a driver that writes to a buffer it has given away spoils its own
 * frames, and nothing that it must not see.
 */
static inline void mv_store_hdr(uint8_t *host, const struct mv_net_hdr *hdr, uint32_t size)
{
	bool same = size == sizeof(*hdr) ? !memcmp(host, hdr, sizeof(*hdr)) :
					   !memcmp(host, hdr, MV_NET_HDR_NUM_BUFFERS);

	if (!same)
		memcpy(host, hdr, size);
}

enum mv_net_hdr_flags { MV_HDR_NEEDS_CSUM = 1 };

enum mv_gso {
	MV_GSO_NONE = 0,
	MV_GSO_TCPV4 = 1,
	MV_GSO_TCPV6 = 4,
	MV_GSO_UDP_L4 = 5,
	MV_GSO_ECN = 0x80,	/* a flag: the packet has CWR set */
};

/* Bytes of header before each frame with these virtio features. */
uint32_t mv_net_hdr_size(uint64_t features);

/* ---- packet.c: a frame taken apart ---- */

enum {
	MV_ETH_SIZE = 14,
	MV_IPV4_SIZE = 20,
	MV_IPV6_SIZE = 40,
	MV_IPV6_MTU = 1280,	/* at least, of every link */
	MV_TCP_SIZE = 20,
	MV_TCP_DATA_OFFSET = 12,	/* where in the header that is ... */
	MV_TCP_CHECKSUM = 16,
	MV_UDP_SIZE = 8,
	MV_UDP_LENGTH = 4,		/* ... and so on */
	MV_UDP_CHECKSUM = 6,

	MV_PROTO_ICMP = 1,
	MV_PROTO_TCP = 6,
	MV_PROTO_UDP = 17,
	MV_PROTO_ICMPV6 = 58,
	MV_PROTO_SCTP = 132,

	/* IPv6 extension headers. */
	MV_HOP_BY_HOP = 0,
	MV_ROUTING = 43,
	MV_FRAGMENT = 44,
	MV_AUTHENTICATION = 51,
	MV_DESTINATION = 60,

	MV_TYPE_IPV4 = 0x0800,
	MV_TYPE_ARP = 0x0806,
	MV_TYPE_IPV6 = 0x86dd,

	/* What is copied of each frame at once: all headers of nearly all packets; 128 with virtio's. */
	MV_PEEK = 128 - sizeof(struct mv_net_hdr),
	/* All headers that are ever looked at. */
	MV_HEAD = 384,
	MV_MAX_EXTENSIONS = 8,	/* headers between IPv6 and transport */
};

enum mv_family { MV_IPV4 = 0, MV_IPV6 = 1, MV_FAMILIES = 2 };

/*
 * A transmitted frame. Everything but `head` points into guest memory and is read once, when it is
 * delivered; whatever is decided is decided from `head`, and that is also what is delivered.
 */
struct mv_packet {
	/* Private copies: of the header that came with the frame, and of its first bytes. */
	union {
		struct {
			struct mv_net_hdr hdr;
			uint8_t head[MV_HEAD];
		};
		uint8_t both[sizeof(struct mv_net_hdr) + MV_HEAD];
	};
	uint32_t head_length;
	uint32_t length;	/* of the frame; what Ethernet padded is left out once parsed */
	const struct mv_chain *chain;
	uint32_t skip;		/* where the frame begins in the chain */
	enum mv_family family;
	bool fragment;
	bool dont_fragment;
	bool rerouted;		/* IPv6: its target is not the one of its checksum */
	uint8_t protocol;	/* after all extension headers */
	uint32_t l4;		/* where the transport header begins; 0: in another fragment */
	uint32_t payload;	/* where the transport payload begins, known for offloads only */
	struct mv_net_hdr offload;	/* rebuilt from what was checked; all zero: none */
};

/* Begin with the frame of a chain that has a header of so many bytes, and MV_ETH_SIZE more at least. */
void mv_packet_begin(struct mv_packet *packet, const struct mv_chain *chain, uint32_t header);

/* Whether the first `length` bytes are there, and private now. */
bool mv_packet_need(struct mv_packet *packet, uint32_t length);

/*
 * Take the IP headers apart. 0, or why the packet must be dropped, negated: -MV_DROP_IP_MALFORMED,
 * -MV_DROP_IP_OPTION.
 */
int mv_parse_ipv4(struct mv_packet *packet);
int mv_parse_ipv6(struct mv_packet *packet);

static inline uint8_t *mv_packet_ip(struct mv_packet *packet)
{
	return packet->head + MV_ETH_SIZE;
}

/* The addresses in the IP header; as many bytes as the family has. */
static inline const uint8_t *mv_packet_source(const struct mv_packet *packet)
{
	return packet->head + MV_ETH_SIZE + (packet->family == MV_IPV4 ? 12 : 8);
}

static inline const uint8_t *mv_packet_target(const struct mv_packet *packet)
{
	return packet->head + MV_ETH_SIZE + (packet->family == MV_IPV4 ? 16 : 24);
}

/* Whether a header of this kind stands between IPv6 and the transport, for routers to pass over. */
static inline bool mv_is_extension(uint8_t protocol)
{
	return protocol == MV_HOP_BY_HOP || protocol == MV_ROUTING || protocol == MV_FRAGMENT ||
	       protocol == MV_AUTHENTICATION || protocol == MV_DESTINATION;
}

/* As numbers to be compared, not to be counted with. */
static inline uint32_t mv_load32(const uint8_t *from)
{
	uint32_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

static inline uint16_t mv_load16(const uint8_t *from)
{
	uint16_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

static inline uint64_t mv_load64(const uint8_t *from)
{
	uint64_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

static inline unsigned int mv_get16(const uint8_t *p)
{
	return (unsigned int)p[0] << 8 | p[1];
}

static inline void mv_put16(uint8_t *p, unsigned int value)
{
	p[0] = (uint8_t)(value >> 8);
	p[1] = (uint8_t)value;
}

/* ---- offload.c: what a guest leaves to the device, and what the receiver can take ---- */

/*
 * Check the header that came with a packet (already parsed, if it is IP) against the packet and the
 * features of its driver, and rebuild it in packet->offload. 0, or a negated enum mv_drop.
 */
int mv_offload_check(struct mv_packet *packet, uint64_t features);

/* Bytes that each segment has at most, IP header included; without segmentation: the packet. */
uint32_t mv_offload_ip_size(const struct mv_packet *packet);

/* Whether a driver with these features takes the packet without segmentation. */
bool mv_offload_takes_gso(const struct mv_net_hdr *offload, enum mv_family family,
			  uint64_t features);

/*
 * The transport checksum of `length` bytes from l4 on, of which the first `in_head` are in head and
 * the others are read. Stored in head's checksum field. fill() does not rely on what the driver has
 * put there; finish() takes it for the sum of the pseudo-header, as it should be.
 */
void mv_offload_finish(uint8_t *head, const struct mv_net_hdr *offload, uint8_t protocol,
		       uint32_t in_head, struct mv_reader rest, uint32_t length);
void mv_offload_fill(uint8_t *head, enum mv_family family, const struct mv_net_hdr *offload,
		     uint8_t protocol, uint32_t in_head, struct mv_reader rest, uint32_t length);

/* Store only what the receiver's device or driver completes: the pseudo-header's sum. */
void mv_offload_prepare(uint8_t *head, enum mv_family family, const struct mv_net_hdr *offload,
			uint8_t protocol, uint32_t length);

/* ---- classify.c: where a transmitted frame goes ---- */

struct mv_pair;

enum mv_action { MV_DROP, MV_PUNT, MV_FORWARD };

struct mv_verdict {
	enum mv_action action;
	unsigned int value;	/* enum mv_punt_kind, or enum mv_drop */
	bool tell;		/* with MV_DROP: the sender is to hear of it ... */
	enum mv_icmp_error error;	/* ... namely this, and for TOO_BIG this MTU */
	unsigned int mtu;	/* with MV_FORWARD: the receiver's, for such a packet */
	mv_port *to;		/* with MV_FORWARD */
};

struct mv_verdict mv_classify(struct mv_pair *pair, struct mv_packet *packet);

/* ---- route.c: networks ---- */

struct mv_hop {
	mv_port *port;		/* NULL: nobody has the address */
	bool on_link;		/* ... but it is one of the network's */
};

/* The longest prefix that holds an address. */
struct mv_hop mv_route(const struct mv_network *network, enum mv_family family,
		       const uint8_t *address);

unsigned int mv_network_mtu(const struct mv_network *network);

/* Whether an IPv4 address is that of all hosts of one of the network's subnets (RFC 919, 7). */
bool mv_network_is_broadcast(const struct mv_network *network, const uint8_t *address);

/*
 * A port begins or ends to be in a network; with the end go its routes. Which edition of its routes is
 * in force can be read where mv_network_enter() says, atomically (route.c, I); it is never 0. What was
 * found in one edition is right as long as the number stays the same.
 */
const uint64_t *mv_network_enter(struct mv_network *network);
void mv_network_leave(struct mv_network *network, mv_port *port);

/* ---- worker.c: threads ---- */

/*
 * As mv_port_drain(), for a ring that a thread polls: no kick is asked for, and what is left to do is
 * added to what *drained and the buffer hold already. What came of it:
 */
enum mv_poll {
	MV_POLL_IDLE,		/* the ring is empty */
	MV_POLL_BUSY,		/* frames were taken; maybe not all */
	MV_POLL_FULL,		/* *drained or the buffer has no room for more */
	MV_POLL_DOWN,		/* the ring is not running or broken */
};

enum mv_poll mv_port_poll(mv_worker *worker, mv_port *port, unsigned int pair, uint64_t now,
			  uint8_t *buffer, struct mv_drained *drained);

/* Whether a drain has left anything to do. */
static inline bool mv_drained_leaves(const struct mv_drained *drained)
{
	return drained->n_punts > 0 || drained->n_woken > 0;
}

/*
 * Attend to one kick that the watcher waits for, if there is one and the watcher's lock is free: whether it
 * was so. For a thread with a worker of its own, not in a drain.
 */
bool mv_watcher_help(mv_watcher *watcher, mv_worker *worker);

/* Between these two nothing that was found in a network's routes is freed. */
void mv_worker_begin(mv_worker *worker);
void mv_worker_end(mv_worker *worker);

/* Wait until all that was between them has ended. For control, after it has replaced something. */
void mv_workers_wait(void);

/* ---- thread.c: threads that the caller gives to the core for good ---- */

/*
 * What such a thread works under, turn after turn; control gets it between two of them. Members are
 * private but for `changed`, which the thread may wait for in a turn.
 */
struct mv_control {
	pthread_mutex_t lock;
	pthread_cond_t changed;		/* control was here */
	_Atomic unsigned int wanted;	/* how many wait for it, apart from the thread */
};

void mv_control_init(struct mv_control *control);
void mv_control_destroy(struct mv_control *control);
void mv_control_begin(struct mv_control *control);
void mv_control_end(struct mv_control *control);

/* The thread: for its turn, after those who want control. */
void mv_control_begin_turn(struct mv_control *control);
void mv_control_end_turn(struct mv_control *control);

/* Another thread: for a turn of its own, if that is to be had without waiting, and nobody wants control. */
bool mv_control_try_turn(struct mv_control *control);

/* The thread, in its turn: let control have it, and wait until it was here. */
void mv_control_wait(struct mv_control *control);

/* In its turn: whether it should let control have it. */
static inline bool mv_control_is_wanted(struct mv_control *control)
{
	return atomic_load(&control->wanted) > 0;
}

/*
 * Block all signals in this thread but those that faults cause: signals are for threads that know of
 * them, and a fault that is blocked would end the process. *before: as it was.
 */
void mv_block_signals(sigset_t *before);

/* ---- limit.c: what one guest may have of what all share ---- */

/* A share that is saved up with time, in nanoseconds of it. */
struct mv_allowance {
	uint64_t most;
	uint64_t pause;		/* once there was too little, nothing is given before there is so much */
	uint64_t saved;
	uint64_t saved_at;	/* ns of the caller's clock */
	bool pausing;
};

/* More pairs do not get a guest more: they are the port's. */
struct mv_limits {
	pthread_mutex_t lock;	/* of what follows */
	struct mv_allowance work;	/* of the services */
	struct mv_allowance errors;
};

void mv_limits_begin(struct mv_limits *limits);
void mv_limits_end(struct mv_limits *limits);

/* Whether the services are to have a frame, which is paid for then. */
bool mv_may_punt(struct mv_limits *limits, enum mv_punt_kind kind, uint32_t length, uint64_t now);

/* ---- port.c, tx.c, rx.c: one NIC ---- */

/* The two rings of a queue pair. */
enum { MV_RX = 0, MV_TX = 1, MV_QUEUES = 2 };

/* A frame on its way into an RX ring: private bytes, then bytes of the sender's memory. */
struct mv_frame {
	struct mv_net_hdr hdr;	/* as the driver will see it, but for num_buffers */
	const uint8_t *head;
	uint32_t head_length;
	struct mv_reader rest;
	uint32_t length;	/* all of it */
};

struct mv_backlog_frame {
	struct mv_backlog_frame *next;
	struct mv_net_hdr hdr;
	uint32_t length;
	uint8_t data[];
};

/* Which flow a packet belongs to: its Ethernet header and IP addresses, as they are in the frame. */
struct mv_flow_key {
	uint64_t ethernet;
	uint64_t ethernet_rest;
	enum mv_family family;
	uint64_t addresses[4];	/* source and target; IPv4: the first, for both */
};

/*
 * Packets of this flow were found good and go to that port (classify.c); the next ones need no lookup
 * as long as no route changes.
 */
struct mv_flow {
	uint64_t edition;	/* of the network's routes; 0: this is none yet */
	mv_port *to;
	struct mv_flow_key key;
};

struct mv_flow_key mv_flow_of(const struct mv_packet *packet);

enum { MV_FLOW_BITS = 4, MV_FLOWS = 1 << MV_FLOW_BITS };

/*
 * A lock that is held for a turn, again and again, by threads that do nothing else. All get it in the
 * order in which they come: see lock.c. All of it is atomic.
 */
struct mv_lock {
	_Alignas(MV_CACHE_LINE) uint32_t next;	/* the ticket of who comes next */
	uint32_t serving;	/* the ticket of who has the lock, or of who gets it first */
	uint32_t sleepers;	/* who wait in the kernel */
};

/*
 * One queue pair of a NIC: a ring to the guest, one from it, and what belongs to each.
 *
 * One thread may take what the guest sends while another brings what it receives, so what the two
 * write is on cache lines apart (two threads, one each way, with packed rings: 2.6; with split ones 1.0,
 * as what is written of those lies apart in any case).
 */
struct mv_pair {
	mv_port *port;
	unsigned int index;
	/* Of each ring. */
	struct mv_lock locks[MV_QUEUES];
	struct mv_ring rings[MV_QUEUES];
	/* RX. */
	_Alignas(MV_CACHE_LINE) struct mv_backlog_frame *backlog_first;
	struct mv_backlog_frame *backlog_last;
	unsigned int backlog_length;	/* up to MV_BACKLOG */
	size_t backlog_bytes;
	bool fed;			/* frames may come: see mv_port_flush() */
	/* TX. */
	_Alignas(MV_CACHE_LINE) struct mv_flow flows[MV_FLOWS];
	/* TX first, RX last, and what seldom happens in between. */
	_Alignas(MV_CACHE_LINE) struct mv_stats stats;	/* atomic */
};

/*
 * There is a lock for each ring and for what belongs to it: the backlog to RX, the flows to TX.
 * Features and memory belong to all of them, so to read them any lock will do. Who takes several
 * takes all TX before the first RX, each in the order of pairs; a drain holds its own TX lock, and one
 * RX lock, that of the receiver that it is moving frames to. Both are held for many frames (taken for
 * each one: 1.5 with 64 bytes, 1.3 with 1514; DPDK 1.4 to 1.6).
 *
 * What all only read is apart from what pairs write. Pairs other than the first are made when they
 * are first needed, and stay until the port goes.
 */
struct mv_port {
	/* Seldom changed. */
	struct mv_network *network;
	const uint64_t *edition;	/* of the network's routes; atomic */
	uint8_t mac[6];
	uint8_t gateway_mac[6];	/* after it, as in a frame to the guest */
	uint32_t tag;
	unsigned int mtu;		/* of IP packets for the guest, in bytes; atomic */
	unsigned int up;		/* a bit for each pair that frames may go to; atomic */
	uint64_t features;
	const mv_memory *memory;
	uint32_t enabled;		/* a bit for each ring, also of pairs that are not made yet */
	struct mv_tap *taps[MV_MAX_TAPS];	/* of captures, the free places last; as features */
	struct mv_pair *pairs[MV_MAX_PAIRS];	/* NULL: not made yet; atomic */
	/* Of all pairs together. */
	_Alignas(MV_CACHE_LINE) struct mv_debt debt;
	struct mv_limits limits;
	struct mv_pair first;
};

static inline uint64_t mv_port_edition(const mv_port *port)
{
	return __atomic_load_n(port->edition, __ATOMIC_SEQ_CST); /* I */
}

/* The one place that a flow can have. */
static inline struct mv_flow *mv_flow_place(struct mv_pair *pair, const struct mv_flow_key *key)
{
	uint64_t mixed = key->addresses[0];

	/* Addresses differ most at their ends; multiplication moves all of it to the top bits. */
	if (key->family == MV_IPV6)
		mixed = key->addresses[1] ^ (key->addresses[3] << 7 | key->addresses[3] >> 57);
	return &pair->flows[mixed * UINT64_C(0x9e3779b97f4a7c15) >> (64 - MV_FLOW_BITS)];
}

/* Where the packets of a flow go, if that is known; NULL: find out. */
static inline mv_port *mv_flow_find(struct mv_pair *pair, const struct mv_flow_key *key)
{
	const struct mv_flow *flow = mv_flow_place(pair, key);
	uint64_t difference = (flow->key.ethernet ^ key->ethernet) |
			      (flow->key.ethernet_rest ^ key->ethernet_rest) |
			      (flow->key.addresses[0] ^ key->addresses[0]);

	if (key->family == MV_IPV6)
		difference |= (flow->key.addresses[1] ^ key->addresses[1]) |
			      (flow->key.addresses[2] ^ key->addresses[2]) |
			      (flow->key.addresses[3] ^ key->addresses[3]);
	return difference == 0 && flow->edition == mv_port_edition(pair->port) ? flow->to : NULL;
}

/* ---- which of its pairs a receiver gets a packet by ---- */

/* NULL: it was never used. */
static inline struct mv_pair *mv_port_pair(const mv_port *port, unsigned int index)
{
	return __atomic_load_n(&port->pairs[index], __ATOMIC_ACQUIRE);
}

/* Whether the first pair is the only one that matters. */
static inline bool mv_port_is_simple(const mv_port *port)
{
	return __atomic_load_n(&port->up, __ATOMIC_ACQUIRE) <= 1;
}

/* Transport headers that begin with a source and a target port. */
static inline bool mv_has_ports(unsigned int protocol)
{
	return protocol == MV_PROTO_TCP || protocol == MV_PROTO_UDP || protocol == MV_PROTO_SCTP;
}

/*
 * The same number for all packets of a flow. ports: as loaded; 0 where there are none, and with
 * protocol 0 for fragments, of which only the first one has any.
 */
static inline uint32_t mv_flow_hash(const struct mv_flow_key *key, unsigned int protocol, uint32_t ports)
{
	const uint64_t *addresses = key->addresses;
	uint64_t mixed = addresses[0];

	if (key->family == MV_IPV6)
		mixed ^= (addresses[1] << 17 | addresses[1] >> 47) ^ (addresses[2] << 31 | addresses[2] >> 33) ^
			 (addresses[3] << 43 | addresses[3] >> 21);
	mixed *= UINT64_C(0x9e3779b97f4a7c15);
	mixed = (mixed ^ mixed >> 32) + ((uint64_t)ports << 8 | protocol);
	mixed *= UINT64_C(0xd6e8feb86659fd93);
	mixed = (mixed ^ mixed >> 32) * UINT64_C(0xd6e8feb86659fd93);
	return (uint32_t)(mixed >> 32);
}

/*
 * Where the packets of a flow go: always the same pair as long as no pair comes or goes. The first one,
 * which will drop them, if none is up.
 */
struct mv_pair *mv_port_choose(mv_port *port, uint32_t hash);

void mv_lock_wait(struct mv_lock *lock, uint32_t ticket);
void mv_lock_wake(struct mv_lock *lock, uint32_t ticket);

/* For who has it: whether somebody waits for it. */
static inline bool mv_lock_is_wanted(const struct mv_pair *pair, unsigned int queue)
{
	const struct mv_lock *lock = &pair->locks[queue];

	return __atomic_load_n(&lock->next, __ATOMIC_RELAXED) -
	       __atomic_load_n(&lock->serving, __ATOMIC_RELAXED) > 1;
}

/* Returns whether it was there at once. */
static inline bool mv_lock(struct mv_pair *pair, unsigned int queue)
{
	struct mv_lock *lock = &pair->locks[queue];
	uint32_t ticket = __atomic_fetch_add(&lock->next, 1, __ATOMIC_RELAXED);

	if (__atomic_load_n(&lock->serving, __ATOMIC_ACQUIRE) == ticket) /* U */
		return true;
	mv_lock_wait(lock, ticket);
	return false;
}

static inline void mv_unlock(struct mv_pair *pair, unsigned int queue)
{
	struct mv_lock *lock = &pair->locks[queue];
	uint32_t ticket = __atomic_load_n(&lock->serving, __ATOMIC_RELAXED) + 1;

	__atomic_store_n(&lock->serving, ticket, __ATOMIC_SEQ_CST); /* U, V */
	if (__atomic_load_n(&lock->sleepers, __ATOMIC_SEQ_CST) > 0) /* V */
		mv_lock_wake(lock, ticket);
}

/* For loops that wait for another processor. */
static inline void mv_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

struct mv_ring_features mv_port_ring_features(const mv_port *port);

/* The largest IP packet for the guest, in bytes; every IPv6 link carries 1280 (RFC 8200, 5). */
static inline unsigned int mv_port_mtu(const mv_port *port, enum mv_family family)
{
	unsigned int mtu = __atomic_load_n(&port->mtu, __ATOMIC_RELAXED);

	return family == MV_IPV6 && mtu < MV_IPV6_MTU ? MV_IPV6_MTU : mtu;
}

/* Whether the RX ring runs, is enabled and is not broken, for who has its lock. */
bool mv_rx_is_up(const struct mv_pair *pair);

/* What others see of that without the lock has to be said anew. */
void mv_rx_note_up(struct mv_pair *pair);

/* mv_ring_publish(), counted; notes that a broken ring is down. */
void mv_pair_publish(struct mv_pair *pair, unsigned int queue);

void mv_backlog_clear(struct mv_pair *pair);

/* The same, each frame counted and recorded as dropped. */
void mv_backlog_drop(struct mv_pair *pair, enum mv_drop reason);

/* How much of its share one call has used up. */
struct mv_turn {
	uint64_t deadline;	/* ns of CLOCK_MONOTONIC */
	uint64_t bytes;
	unsigned int work;	/* since the last look at the clock */
	bool over;		/* its time, that is */
	bool overdue;		/* no more pieces of the packet that is at work, either */
};

struct mv_turn mv_turn_begin(void);

/* So that a guest without end does not hold up the others. */
enum {
	MV_TURN_BYTES = 1 << 20,
	/* Between looks at the clock, of 25 ns each: descriptors, frames, ... */
	MV_CLOCK_EVERY = 32,
	/* ... and as many bytes, which take as long to be copied as another frame takes. */
	MV_BYTES_OF_WORK = 2048,
};

void mv_turn_look_at_clock(struct mv_turn *turn);

/*
 * Who has waited for another thread has used up time without any work. However long that was, the packet
 * for which it has waited is dealt with as one at the end of a turn is.
 */
void mv_turn_has_waited(struct mv_turn *turn);

/* Count descriptors or frames, and bytes. */
static inline void mv_turn_count(struct mv_turn *turn, unsigned int n, uint64_t bytes)
{
	turn->work += n + (unsigned int)(bytes / MV_BYTES_OF_WORK);
	turn->bytes += bytes;
}

/* Count one more frame of so many bytes. */
static inline bool mv_turn_is_over(struct mv_turn *turn, uint64_t bytes)
{
	mv_turn_count(turn, 1, bytes);
	if (turn->work >= MV_CLOCK_EVERY)
		mv_turn_look_at_clock(turn);
	return turn->over || turn->bytes >= MV_TURN_BYTES;
}

/* An RX ring while frames are moved to it, under its lock. */
struct mv_rx {
	mv_port *port;
	struct mv_pair *pair;	/* of the port; NULL: there is none */
	struct mv_turn *turn;
	unsigned int available;	/* chains that may still be taken */
	uint32_t header;
	bool mergeable;
	bool idle;		/* nothing waits, so frames go straight to the ring */
	unsigned int reach;	/* chains to look at the next time */
	uint64_t frames;	/* delivered and not yet counted at the pair */
	uint64_t bytes;
	struct mv_ahead ahead;
};

/*
 * The ring's next chain, if it is one that a frame can go straight into: a slot, with nothing that
 * has to go before. It must be taken, or nothing done to the ring, before the next call.
 */
const struct mv_slot *mv_rx_slot(struct mv_rx *rx);

/* That slot has a frame of so many bytes now, after a header. */
void mv_rx_take_slot(struct mv_rx *rx, const struct mv_slot *slot, uint32_t length);

void mv_rx_open(struct mv_rx *rx, struct mv_pair *pair, struct mv_turn *turn);

/* Let the driver see what it got, and count it. */
void mv_rx_show(struct mv_rx *rx);

/*
 * Deliver a frame, or keep a copy of it in the backlog: 0; or the negated reason to drop it, which
 * the caller has to count at the receiver. Nothing is published yet.
 */
int mv_rx_push(struct mv_rx *rx, const struct mv_frame *frame);

/* ---- tx.c, express.c: the drain ---- */

/* What one call of mv_port_drain() works with. */
struct mv_drain {
	mv_port *port;
	struct mv_pair *pair;	/* of the port */
	bool polled;		/* by a thread that looks at the ring again without a kick */
	uint64_t now;
	uint8_t *buffer;
	size_t used;
	struct mv_drained *result;
	struct mv_turn turn;
	struct mv_rx rx;	/* of the receiver of the last forwarded packet, if any: it is locked */
	struct mv_pair *touched[MV_MAX_WOKEN];	/* receivers */
	unsigned int n_touched;
	bool express;		/* the ring is enabled, and has headers of full size */
	uint64_t shown;		/* of the turn's bytes: both drivers can see what became of them */
	/* Not yet counted at the pair. */
	uint64_t frames;
	uint64_t bytes;
	uint64_t routed;
};

/*
 * Packets come in runs to one receiver, so its ring is locked, looked at and shown once for a run (for
 * each packet: 1.6 with 64 bytes, 1.3 with 1514; DPDK, 64 bytes, split rings 2.3).
 */
void mv_turn_to_receiver(struct mv_drain *drain, struct mv_pair *to);

/*
 * Send the frame in a chain on if it is one for the short way. False: it is not, and nothing was
 * done to a ring; but it may have been turned to a receiver.
 */
bool mv_express(struct mv_drain *drain, const struct mv_slot *slot);

/* ---- forward.c: from one NIC to another ---- */

/*
 * Send a packet on that mv_classify() has found good: rewritten, and segmented, fragmented or
 * checksummed as far as the receiver needs it.
 */
void mv_forward(struct mv_rx *to, struct mv_packet *packet, unsigned int mtu);

/* ---- capture.c ---- */

/* The direction of a frame, as pcapng counts: the guest is the host, the NIC its interface. */
enum mv_way { MV_INBOUND = 1, MV_OUTBOUND = 2 };

enum { MV_NOT_DROPPED = -1 };

/* Whether captures want the frames of this port, for who has the lock of one of its rings. */
static inline bool mv_port_is_tapped(const mv_port *port)
{
	return port->taps[0];
}

void mv_record_frame(mv_port *port, enum mv_way way, int reason, const struct mv_frame *frame);

/* Record a frame for each capture of the port, with the reason why it was dropped, if it was. */
static inline void mv_tap_frame(mv_port *port, enum mv_way way, int reason,
				const struct mv_frame *frame)
{
	if (mv_port_is_tapped(port))
		mv_record_frame(port, way, reason, frame);
}

/* False: the port has no place for it. */
bool mv_port_add_tap(mv_port *port, struct mv_tap *tap);
void mv_port_remove_tap(mv_port *port, const struct mv_tap *tap);

/* ---- virtio feature bits that the core acts on ---- */

#define MV_F_CSUM		(UINT64_C(1) << 0)
#define MV_F_GUEST_CSUM		(UINT64_C(1) << 1)
#define MV_F_GUEST_TSO4		(UINT64_C(1) << 7)
#define MV_F_GUEST_TSO6		(UINT64_C(1) << 8)
#define MV_F_GUEST_ECN		(UINT64_C(1) << 9)
#define MV_F_HOST_TSO4		(UINT64_C(1) << 11)
#define MV_F_HOST_TSO6		(UINT64_C(1) << 12)
#define MV_F_HOST_ECN		(UINT64_C(1) << 13)
#define MV_F_MRG_RXBUF		(UINT64_C(1) << 15)
#define MV_F_INDIRECT_DESC	(UINT64_C(1) << 28)
#define MV_F_EVENT_IDX		(UINT64_C(1) << 29)
#define MV_F_VERSION_1		(UINT64_C(1) << 32)
#define MV_F_RING_PACKED	(UINT64_C(1) << 34)
#define MV_F_GUEST_USO4		(UINT64_C(1) << 54)
#define MV_F_GUEST_USO6		(UINT64_C(1) << 55)
#define MV_F_HOST_USO		(UINT64_C(1) << 56)

#endif
