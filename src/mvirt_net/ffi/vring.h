/* What split rings (vring.c) and packed rings (packed.c) have in common. */
#ifndef MVIRT_VRING_H
#define MVIRT_VRING_H

#include "core.h"

enum {
	DESC_F_NEXT = 1,
	DESC_F_WRITE = 2,
	DESC_F_INDIRECT = 4,

	DESC_SIZE = 16,
	DESC_ALIGN = 16,
};

/* Fields of the rings are single accesses: neither side may ever see half of one. */

static inline uint16_t load16(const uint8_t *field)
{
	return __atomic_load_n((const uint16_t *)(const void *)field, __ATOMIC_RELAXED);
}

static inline uint16_t load16_acquire(const uint8_t *field)
{
	return __atomic_load_n((const uint16_t *)(const void *)field, __ATOMIC_ACQUIRE);
}

static inline void store16(uint8_t *field, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)field, value, __ATOMIC_RELAXED);
}

static inline void store16_release(uint8_t *field, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)field, value, __ATOMIC_RELEASE);
}

/*
 * Whether moving an index from `old` to `now` passes `event` (virtio 1.2, 2.7.7.1, 2.7.10 and
 * 2.8.10).
 */
static inline bool passes_event(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

static inline bool parts_overlap(uint64_t a, size_t a_size, uint64_t b, size_t b_size)
{
	return a - b < b_size || b - a < a_size;
}

/* Forget the last chain that was looked at. */
static inline void begin_chain(struct mv_chain *chain)
{
	chain->slots = 1;
	chain->faulty = false;
	chain->n_descs = 0;
	chain->n_segments = 0;
	chain->length = 0;
}

static inline bool add_segment(struct mv_chain *chain, uint8_t *host, uint32_t length)
{
	if (!host || chain->n_segments == MV_MAX_SEGMENTS)
		return false;
	chain->segments[chain->n_segments].host = host;
	chain->segments[chain->n_segments].length = length;
	chain->n_segments++;
	chain->length += length;
	return true;
}

/* Add a descriptor's buffer, which may cross adjacent regions; no region holds the last address. */
static inline bool add_buffer(struct mv_chain *chain, const mv_memory *memory, uint64_t addr,
			      uint32_t length)
{
	uint32_t run = 0;

	for (; length > 0; addr += run, length -= run) {
		uint8_t *host = mv_memory_guest(memory, addr, length, &run);

		if (!add_segment(chain, host, run))
			return false;
	}
	return true;
}

/* Add a descriptor's buffer; one of the wrong direction or outside memory makes the chain faulty. */
static inline void add_desc(struct mv_chain *chain, const mv_memory *memory,
			    enum mv_direction direction, uint64_t addr, uint32_t length,
			    uint16_t flags)
{
	bool for_device = !(flags & DESC_F_WRITE);

	if (for_device != (direction == MV_FROM_DRIVER) ||
	    (!chain->faulty && !add_buffer(chain, memory, addr, length)))
		chain->faulty = true;
}

/* Whether an indirect table of so many bytes obeys virtio 1.2, 2.7.5.3 and 2.8.7. */
static inline bool table_is_sane(uint32_t bytes, unsigned int ring_size)
{
	return bytes > 0 && bytes % DESC_SIZE == 0 && bytes / DESC_SIZE <= ring_size;
}

/*
 * Fetch the first lines of a buffer; the processor itself fetches more of a long one as it is used. A
 * line that will be written is fetched for that: taking it over later would cost as much again (DPDK, 64
 * and 1500 bytes, all fetched to be read: split rings 1.00 and 1.20, packed ones 1.20 and 1.30). But one
 * that has the header alone, as with DPDK's driver, is nearly always only read (mv_store_hdr(); fetched
 * to be written, 64 bytes: 1.2). What a driver sends need not be fetched if it sends the same again
 * (1.0); if it writes each frame anew, it is 1.2 to 1.4 without with packed rings, 1.0 with split ones.
 */
static inline void fetch(const uint8_t *host, uint32_t length, enum mv_direction direction)
{
	if (direction == MV_TO_DRIVER) {
		if (((uintptr_t)host + sizeof(struct mv_net_hdr)) % MV_CACHE_LINE == 0)
			__builtin_prefetch(host);
		else
			__builtin_prefetch(host, 1);
		if (length > MV_CACHE_LINE)
			__builtin_prefetch(host + MV_CACHE_LINE, 1);
	} else {
		__builtin_prefetch(host);
		if (length > MV_CACHE_LINE)
			__builtin_prefetch(host + MV_CACHE_LINE);
	}
}

/* Note what a single descriptor names, if it is of some length and within one region. */
static inline void fill_slot(struct mv_slot *slot, const mv_memory *memory,
			     enum mv_direction direction, uint64_t addr, uint32_t length)
{
	uint32_t run = 0;
	uint8_t *host = length > 0 ? mv_memory_guest(memory, addr, length, &run) : NULL;

	if (!host || run != length)
		return;
	slot->host = host;
	slot->length = length;
	fetch(host, length, direction);
}

/* ---- packed.c: what the functions of vring.c do with a packed ring ---- */

int mv_packed_translate(struct mv_ring *ring, const mv_memory *memory, unsigned int size,
			const struct mv_ring_addr *addr);
void mv_packed_begin(struct mv_ring *ring, int64_t base);
int64_t mv_packed_base(const struct mv_ring *ring);
unsigned int mv_packed_available(struct mv_ring *ring);
bool mv_packed_peek(struct mv_ring *ring, struct mv_ring_features features,
		    const mv_memory *memory, enum mv_direction direction, struct mv_chain *chain);
void mv_packed_look_ahead(const struct mv_ring *ring, const mv_memory *memory,
			  enum mv_direction direction, struct mv_ahead *ahead);
void mv_packed_take(struct mv_ring *ring, uint16_t id, uint16_t slots, uint32_t written);
void mv_packed_untake(struct mv_ring *ring, unsigned int n);
void mv_packed_void(struct mv_ring *ring, unsigned int n);
void mv_packed_show(struct mv_ring *ring);
bool mv_packed_publish(struct mv_ring *ring, struct mv_ring_features features);
bool mv_packed_owes_call(const struct mv_ring *ring, struct mv_ring_features features);
void mv_packed_refuse_kicks(struct mv_ring *ring);
void mv_packed_want_kick(struct mv_ring *ring, struct mv_ring_features features, uint16_t seen);
bool mv_packed_goes_beyond(const struct mv_ring *ring, uint16_t seen);

#endif
