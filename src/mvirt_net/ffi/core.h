/* What the files of the core share with one another and with nobody else. */
#ifndef MVIRT_CORE_H
#define MVIRT_CORE_H

/* preadv2, file seals. Each file of the core includes this header first. */
#define _GNU_SOURCE

#include "mvirt.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "virtio 1.x is little endian and so are the hosts this core is written for");

/* A page of the host, and what sizes and offsets of regions must be a multiple of. */
enum { MV_PAGE = 4096 };

/* ---- memory.c ---- */

/* One mapping; owned by all the tables that hold it. */
struct mv_region {
	uint64_t guest_addr;
	uint64_t user_addr;
	uint64_t size;
	uint8_t *host;		/* the region's first byte */
	uint8_t *map;		/* the mapping: may begin before host and end after the region */
	size_t map_size;
	unsigned int watch;	/* slot in the SIGBUS table */
	unsigned int tables;
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
uint8_t *mv_memory_guest(const mv_memory *memory, uint64_t addr, uint32_t length, uint32_t *run);

/* Where user addresses addr..addr+length-1 are; NULL unless they lie within one region. */
uint8_t *mv_memory_user(const mv_memory *memory, uint64_t addr, uint64_t length);

/* Copy from guest memory: 0, or -EFAULT with an unmapped byte in the range. */
int mv_memory_read(const mv_memory *memory, uint64_t addr, void *into, uint32_t length);

/* ---- sigbus.c ---- */

/* Guard map..map+size: the slot's number, -ENOSPC, or what sigaction said. */
int mv_sigbus_watch(void *map, size_t size, int fault_fd);
void mv_sigbus_unwatch(unsigned int slot);

/* ---- vring.c: split virtqueues seen from the device (virtio 1.2, 2.7) ---- */

struct mv_ring {
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
	int call_fd;
	int err_fd;
};

/* What the driver accepted, as the ring code needs it. */
struct mv_ring_features {
	bool event_idx;
	bool indirect;
};

struct mv_segment {
	uint8_t *host;
	uint32_t length;
};

/* One descriptor chain, copied and translated. */
struct mv_chain {
	uint16_t head;
	bool faulty;		/* wrong direction, outside memory or too long: complete it with 0 */
	unsigned int n_descs;	/* looked at, in both tables */
	unsigned int n_segments;
	uint64_t length;
	struct mv_segment segments[MV_MAX_CHAIN + MV_MAX_REGIONS];
};

enum mv_direction { MV_FROM_DRIVER, MV_TO_DRIVER };

int mv_ring_translate(struct mv_ring *ring, const mv_memory *memory, unsigned int size,
		      const struct mv_ring_addr *addr);
void mv_ring_begin(struct mv_ring *ring, int base);

/* Entries that the driver has made available, 0..size; marks the ring broken when it lies. */
unsigned int mv_ring_available(struct mv_ring *ring);

/*
 * Copy and translate the next chain without taking it: mv_ring_take() does that. False: the ring
 * is broken now. Needs mv_ring_available() > 0.
 */
bool mv_ring_peek(struct mv_ring *ring, struct mv_ring_features features, const mv_memory *memory,
		  enum mv_direction direction, struct mv_chain *chain);

/*
 * Take the chain that was looked at (head: the copy from then) and put it in the used ring, not yet
 * visible to the driver.
 */
void mv_ring_take(struct mv_ring *ring, uint16_t head, uint32_t written);

/* Undo the last n takes; none of them may have been published. */
void mv_ring_untake(struct mv_ring *ring, unsigned int n);

/* Give the buffers of the last n takes back empty; none of them may have been published. */
void mv_ring_void(struct mv_ring *ring, unsigned int n);

/* Make the used entries visible and interrupt the driver if it wants that: true if it was. */
bool mv_ring_publish(struct mv_ring *ring, struct mv_ring_features features);

/* Tell the driver that no kick is needed until mv_ring_ask_for_kick(). */
void mv_ring_refuse_kicks(struct mv_ring *ring, struct mv_ring_features features);

/* Ask for a kick; false when entries are there already, and then none was asked for. */
bool mv_ring_ask_for_kick(struct mv_ring *ring, struct mv_ring_features features);

void mv_ring_break(struct mv_ring *ring);

/* Copy up to length bytes that start `skip` bytes into the chain; returns how many. */
uint32_t mv_chain_read(const struct mv_chain *chain, uint32_t skip, void *into, uint32_t length);
uint32_t mv_chain_write(const struct mv_chain *chain, uint32_t skip, const void *from,
			uint32_t length);

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

/* Bytes of header before each frame with these virtio features. */
uint32_t mv_net_hdr_size(uint64_t features);

/* Whether the header of a transmitted frame asks only for what this device offers. */
bool mv_net_hdr_allowed(const struct mv_net_hdr *hdr);

/* ---- classify.c: where a transmitted frame goes ---- */

/* As much of a frame as is ever looked at: Ethernet, the longest IPv4 header, UDP ports. */
enum { MV_PEEK = 14 + 60 + 8 };

struct mv_verdict {
	bool punt;
	unsigned int value;	/* enum mv_punt_kind or enum mv_drop */
};

/* The port's addresses that frames are judged by. */
struct mv_identity {
	uint8_t mac[6];
	uint8_t gateway_ipv4[4];
};

/* head: private copy of the first min(length, MV_PEEK) bytes of a frame of >= 14 bytes. */
struct mv_verdict mv_classify(const struct mv_identity *identity, const uint8_t *head,
			      uint32_t length);

/* ---- port.c, tx.c, rx.c: one NIC ---- */

enum { MV_RX = 0, MV_TX = 1, MV_QUEUES = 2 };
enum { MV_ETH_SIZE = 14 };

struct mv_backlog_frame {
	uint8_t *data;
	uint32_t length;
};

struct mv_port {
	struct mv_identity identity;
	uint64_t features;
	const mv_memory *memory;
	struct mv_ring rings[MV_QUEUES];
	struct mv_backlog_frame backlog[MV_BACKLOG];
	unsigned int backlog_first;
	unsigned int backlog_length;
	struct mv_stats stats;
};

struct mv_ring_features mv_port_ring_features(const mv_port *port);

/* mv_ring_publish(), counted. */
void mv_port_publish(mv_port *port, struct mv_ring *ring);

/* Whether frames may go to the guest. */
bool mv_rx_is_up(const mv_port *port);

void mv_backlog_clear(mv_port *port);

/* How much of its share one call has used up. */
struct mv_turn {
	uint64_t deadline;	/* ns of CLOCK_MONOTONIC */
	uint64_t bytes;
	unsigned int work;	/* since the last look at the clock; descriptors are added by hand */
};

struct mv_turn mv_turn_begin(void);

/* Count one more frame of so many bytes. */
bool mv_turn_is_over(struct mv_turn *turn, uint64_t bytes);

/* ---- virtio feature bits that the core acts on ---- */

#define MV_F_MRG_RXBUF		(UINT64_C(1) << 15)
#define MV_F_INDIRECT_DESC	(UINT64_C(1) << 28)
#define MV_F_EVENT_IDX		(UINT64_C(1) << 29)
#define MV_F_VERSION_1		(UINT64_C(1) << 32)

#endif
