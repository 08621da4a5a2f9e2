/*
 * Split virtqueues, seen from the device (virtio 1.2, 2.7).
 *
 * Theory of operation. The driver may write to any byte of the ring at any moment, so nothing is
 * believed twice: each index, ring entry and descriptor is loaded once, the copy is checked, and
 * only the copy is used. Our own indices live in struct mv_ring and are never read back. Chains
 * are bounded by the size of their table and by MV_MAX_CHAIN. A lie about the structure of the
 * ring itself (indices, heads, links) breaks the ring until its next start; a lie about a buffer
 * costs that buffer.
 *
 * A batch is: available() once, then peek()/take() for each chain, then publish() once.
 *
 * Barriers, by letter; the partner of each stands in the driver:
 *   A  acquire load of avail->idx: with the driver's release of it after filling descriptors.
 *   B  release store of used->idx: with the driver's acquire of it before reading used entries.
 *   C  full fence between storing used->idx and loading avail->flags/used_event: with the
 *      driver's fence between storing used_event and loading used->idx. One side sees the other.
 *   D  full fence between asking for a kick and loading avail->idx: with the driver's fence
 *      between storing avail->idx and loading used->flags/avail_event. One side sees the other.
 */
#include "core.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

enum {
	DESC_F_NEXT = 1,
	DESC_F_WRITE = 2,
	DESC_F_INDIRECT = 4,

	AVAIL_F_NO_INTERRUPT = 1,
	USED_F_NO_NOTIFY = 1,

	CACHE_LINE = 64,

	DESC_ALIGN = 16,
	AVAIL_ALIGN = 2,
	USED_ALIGN = 4,
};

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct used_elem {
	uint32_t id;
	uint32_t len;
};

_Static_assert(sizeof(struct desc) == 16, "struct virtq_desc");
_Static_assert(sizeof(struct used_elem) == 8, "struct virtq_used_elem");

/* Offsets in the available and used rings; the last field is there with EVENT_IDX only. */
enum { RING_FLAGS = 0, RING_IDX = 2, RING_ENTRIES = 4 };

static size_t desc_bytes(unsigned int size)
{
	return sizeof(struct desc) * size;
}

static size_t avail_bytes(unsigned int size)
{
	return RING_ENTRIES + sizeof(uint16_t) * size + sizeof(uint16_t);
}

static size_t used_bytes(unsigned int size)
{
	return RING_ENTRIES + sizeof(struct used_elem) * size + sizeof(uint16_t);
}

/* Fields of the rings are single 16-bit accesses: neither side may ever see half of one. */

static uint16_t load16(const uint8_t *field)
{
	return __atomic_load_n((const uint16_t *)(const void *)field, __ATOMIC_RELAXED);
}

static uint16_t load16_acquire(const uint8_t *field)
{
	return __atomic_load_n((const uint16_t *)(const void *)field, __ATOMIC_ACQUIRE);
}

static void store16(uint8_t *field, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)field, value, __ATOMIC_RELAXED);
}

static void store16_release(uint8_t *field, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)field, value, __ATOMIC_RELEASE);
}

static uint8_t *avail_entry(const struct mv_ring *ring, uint16_t index)
{
	return ring->avail + RING_ENTRIES + sizeof(uint16_t) * (index & (ring->size - 1));
}

static uint8_t *used_event(const struct mv_ring *ring)
{
	return ring->avail + RING_ENTRIES + sizeof(uint16_t) * ring->size;
}

static uint8_t *avail_event(const struct mv_ring *ring)
{
	return ring->used + RING_ENTRIES + sizeof(struct used_elem) * ring->size;
}

/* Whether moving an index from `old` to `now` passes `event` (virtio 1.2, 2.7.7.1 and 2.7.10). */
static bool passes_event(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

/* ---- where the ring is ---- */

static bool misaligned(const struct mv_ring_addr *addr)
{
	return addr->desc % DESC_ALIGN || addr->avail % AVAIL_ALIGN || addr->used % USED_ALIGN;
}

static bool parts_overlap(uint64_t a, size_t a_size, uint64_t b, size_t b_size)
{
	return a - b < b_size || b - a < a_size;
}

static bool ring_overlaps_itself(unsigned int size, const struct mv_ring_addr *addr)
{
	size_t desc = desc_bytes(size), avail = avail_bytes(size), used = used_bytes(size);

	return parts_overlap(addr->desc, desc, addr->avail, avail) ||
	       parts_overlap(addr->desc, desc, addr->used, used) ||
	       parts_overlap(addr->avail, avail, addr->used, used);
}

int mv_ring_translate(struct mv_ring *ring, const mv_memory *memory, unsigned int size,
		      const struct mv_ring_addr *addr)
{
	uint8_t *desc, *avail, *used;

	if (size < MV_MIN_RING_SIZE || size > MV_MAX_RING_SIZE || (size & (size - 1)))
		return -EINVAL;
	if (misaligned(addr) || ring_overlaps_itself(size, addr))
		return -EINVAL;
	if (!memory)
		return -EFAULT;
	desc = mv_memory_user(memory, addr->desc, desc_bytes(size));
	avail = mv_memory_user(memory, addr->avail, avail_bytes(size));
	used = mv_memory_user(memory, addr->used, used_bytes(size));
	if (!desc || !avail || !used)
		return -EFAULT;
	/* A region may be mapped at any distance from its user address, so even ones are checked. */
	if ((uintptr_t)avail % AVAIL_ALIGN || (uintptr_t)used % USED_ALIGN)
		return -EINVAL;
	ring->size = size;
	ring->addr = *addr;
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	return 0;
}

void mv_ring_begin(struct mv_ring *ring, int base)
{
	uint16_t avail = load16_acquire(ring->avail + RING_IDX); /* A */
	uint16_t used = load16(ring->used + RING_IDX);
	bool used_fits = (uint16_t)(avail - used) <= ring->size;
	bool base_fits = (uint16_t)(avail - (uint16_t)base) <= ring->size;

	if (base < 0 || (used_fits && base_fits))
		base = used;
	ring->last_avail = (uint16_t)base;
	ring->used_idx = used;
	ring->published = used;
	ring->signalled = used;
	ring->signalled_valid = false;
	ring->armed = false;
	ring->most = 0;
	ring->starved = false;
	ring->broken = false;
	ring->running = true;
}

/* ---- taking chains ---- */

void mv_ring_break(struct mv_ring *ring)
{
	if (ring->broken)
		return;
	ring->broken = true;
	if (ring->err_fd >= 0)
		(void)mv_debt_signal(ring->debt, ring->err_fd);
}

unsigned int mv_ring_available(struct mv_ring *ring)
{
	uint16_t n = (uint16_t)(load16_acquire(ring->avail + RING_IDX) - ring->last_avail); /* A */

	if (n > ring->size) {
		mv_ring_break(ring);
		return 0;
	}
	if (n > ring->most)
		ring->most = n;
	return n;
}

/* The table that a chain runs through: the ring's own, or an indirect one in guest memory. */
struct table {
	const mv_memory *memory;
	const uint8_t *host;		/* NULL: indirect, at guest_addr */
	uint64_t guest_addr;
	unsigned int size;
};

/* Load one descriptor, once; false when an indirect table is not all there. */
static bool load_desc(const struct table *table, unsigned int index, struct desc *desc)
{
	uint64_t offset = (uint64_t)index * sizeof(*desc);

	if (table->host)
		memcpy(desc, table->host + offset, sizeof(*desc));
	else if (mv_memory_read(table->memory, table->guest_addr + offset, desc, sizeof(*desc)) < 0)
		return false;
	mv_load_once();
	return true;
}

static bool add_segment(struct mv_chain *chain, uint8_t *host, uint32_t length)
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
static bool add_buffer(struct mv_chain *chain, const mv_memory *memory, const struct desc *desc)
{
	uint64_t addr = desc->addr;
	uint32_t left = desc->len, run = 0;

	for (; left > 0; addr += run, left -= run) {
		uint8_t *host = mv_memory_guest(memory, addr, left, &run);

		if (!add_segment(chain, host, run))
			return false;
	}
	return true;
}

enum link { LINK_END, LINK_INDIRECT, LINK_BAD };

/*
 * Follow the links from `index`. LINK_BAD: the table itself is wrong. LINK_INDIRECT: the chain
 * goes on in the table that *last describes.
 */
static enum link follow(struct mv_chain *chain, const struct table *table, unsigned int index,
			enum mv_direction direction, struct desc *last)
{
	for (unsigned int n = 0; n < table->size; n++) {
		bool for_device;

		/* So long a chain is legal in a ring that large, but no frame needs it. */
		if (chain->n_descs++ == MV_MAX_CHAIN) {
			chain->faulty = true;
			return LINK_END;
		}
		if (index >= table->size || !load_desc(table, index, last))
			return LINK_BAD;
		if (last->flags & DESC_F_INDIRECT)
			return LINK_INDIRECT;
		for_device = !(last->flags & DESC_F_WRITE);
		if (for_device != (direction == MV_FROM_DRIVER) ||
		    (!chain->faulty && !add_buffer(chain, table->memory, last)))
			chain->faulty = true;
		if (!(last->flags & DESC_F_NEXT))
			return LINK_END;
		index = last->next;
	}
	return LINK_BAD;
}

/* Whether an indirect descriptor obeys virtio 1.2, 2.7.5.3.1. */
static bool indirect_is_sane(const struct desc *desc, unsigned int ring_size)
{
	return !(desc->flags & DESC_F_NEXT) && desc->len > 0 && desc->len % sizeof(*desc) == 0 &&
	       desc->len / sizeof(*desc) <= ring_size;
}

/* The whole chain: descriptors of the ring, the last of which may name an indirect table. */
static bool walk(const struct mv_ring *ring, struct mv_ring_features features,
		 const mv_memory *memory, enum mv_direction direction, struct mv_chain *chain)
{
	struct table table = { .memory = memory, .host = ring->desc, .size = ring->size };
	struct desc last;
	enum link end = follow(chain, &table, chain->head, direction, &last);

	if (end == LINK_INDIRECT) {
		if (!features.indirect || !indirect_is_sane(&last, ring->size))
			return false;
		table.host = NULL;
		table.guest_addr = last.addr;
		table.size = last.len / sizeof(last);
		end = follow(chain, &table, 0, direction, &last);
	}
	return end == LINK_END;
}

bool mv_ring_peek(struct mv_ring *ring, struct mv_ring_features features, const mv_memory *memory,
		  enum mv_direction direction, struct mv_chain *chain)
{
	chain->head = load16(avail_entry(ring, ring->last_avail));
	chain->faulty = false;
	chain->n_descs = 0;
	chain->n_segments = 0;
	chain->length = 0;
	if (chain->head < ring->size && walk(ring, features, memory, direction, chain))
		return true;
	mv_ring_break(ring);
	return false;
}

/*
 * Fetch the first lines of a buffer; the processor itself fetches more of a long one as it is used. A
 * line that will be written is fetched for that: taking it over later would cost as much again.
 */
static void fetch(const uint8_t *host, uint32_t length, enum mv_direction direction)
{
	if (direction == MV_TO_DRIVER) {
		__builtin_prefetch(host, 1);
		if (length > CACHE_LINE)
			__builtin_prefetch(host + CACHE_LINE, 1);
	} else {
		__builtin_prefetch(host);
		if (length > CACHE_LINE)
			__builtin_prefetch(host + CACHE_LINE);
	}
}

void mv_ring_look_ahead(const struct mv_ring *ring, const mv_memory *memory,
			enum mv_direction direction, unsigned int n, struct mv_ahead *ahead)
{
	uint16_t flags = direction == MV_TO_DRIVER ? DESC_F_WRITE : 0;
	struct desc desc;
	uint32_t run;

	ahead->n = n;
	ahead->next = 0;
	for (unsigned int i = 0; i < n; i++) {
		struct mv_slot *slot = &ahead->slots[i];

		slot->host = NULL;
		slot->head = load16(avail_entry(ring, (uint16_t)(ring->last_avail + i)));
		if (slot->head < ring->size)
			__builtin_prefetch(ring->desc + sizeof(desc) * slot->head);
	}
	for (unsigned int i = 0; i < n; i++) {
		struct mv_slot *slot = &ahead->slots[i];

		if (slot->head >= ring->size)
			continue;
		memcpy(&desc, ring->desc + sizeof(desc) * slot->head, sizeof(desc));
		mv_load_once();
		if (desc.flags != flags || desc.len == 0)
			continue;
		slot->length = desc.len;
		slot->host = mv_memory_guest(memory, desc.addr, desc.len, &run);
		if (!slot->host || run != desc.len) {
			slot->host = NULL;
			continue;
		}
		fetch(slot->host, desc.len, direction);
	}
}

void mv_ring_take(struct mv_ring *ring, uint16_t head, uint32_t written)
{
	struct used_elem elem = { .id = head, .len = written };
	unsigned int slot = ring->used_idx & (ring->size - 1);

	memcpy(ring->used + RING_ENTRIES + sizeof(elem) * slot, &elem, sizeof(elem));
	ring->used_idx++;
	ring->last_avail++;
}

void mv_ring_untake(struct mv_ring *ring, unsigned int n)
{
	ring->used_idx = (uint16_t)(ring->used_idx - n);
	ring->last_avail = (uint16_t)(ring->last_avail - n);
}

void mv_ring_void(struct mv_ring *ring, unsigned int n)
{
	for (unsigned int i = 1; i <= n; i++) {
		unsigned int slot = (unsigned int)(ring->used_idx - i) & (ring->size - 1);
		uint8_t *elem = ring->used + RING_ENTRIES + sizeof(struct used_elem) * slot;

		memset(elem + offsetof(struct used_elem, len), 0, sizeof(uint32_t));
	}
}

/* ---- notifications ---- */

/* Whether the driver wants to hear of the used entries up to ring->published. */
static bool wants_call(struct mv_ring *ring, struct mv_ring_features features)
{
	uint16_t before = ring->signalled;
	bool first = !ring->signalled_valid;

	ring->signalled = ring->published;
	ring->signalled_valid = true;
	atomic_thread_fence(memory_order_seq_cst); /* C */
	if (!features.event_idx)
		return !(load16(ring->avail + RING_FLAGS) & AVAIL_F_NO_INTERRUPT);
	return first || passes_event(load16(used_event(ring)), ring->published, before);
}

bool mv_ring_call(struct mv_ring *ring)
{
	bool called;

	if (ring->call_fd < 0)
		return false;
	called = mv_debt_signal(ring->debt, ring->call_fd) == 1;
	if (mv_debt_is_too_high(ring->debt))
		mv_ring_break(ring);
	return called;
}

void mv_ring_show(struct mv_ring *ring)
{
	if (ring->published == ring->used_idx)
		return;
	store16_release(ring->used + RING_IDX, ring->used_idx); /* B */
	ring->published = ring->used_idx;
}

bool mv_ring_publish(struct mv_ring *ring, struct mv_ring_features features)
{
	mv_ring_show(ring);
	if (ring->published == ring->signalled)
		return false;
	return wants_call(ring, features) && mv_ring_call(ring);
}

bool mv_ring_owes_call(const struct mv_ring *ring, struct mv_ring_features features)
{
	if (!features.event_idx)
		return (ring->published > 0 || ring->signalled_valid) &&
		       !(load16(ring->avail + RING_FLAGS) & AVAIL_F_NO_INTERRUPT);
	return passes_event(load16(used_event(ring)), ring->published,
			    (uint16_t)(ring->published - ring->size));
}

void mv_ring_refuse_kicks(struct mv_ring *ring, struct mv_ring_features features)
{
	ring->armed = false;
	if (features.event_idx)
		/* Just passed, so not passed again before 65,535 more entries. */
		store16(avail_event(ring), (uint16_t)(ring->last_avail - 1));
	else
		store16(ring->used + RING_FLAGS, USED_F_NO_NOTIFY);
}

bool mv_ring_ask_for_kick(struct mv_ring *ring, struct mv_ring_features features, uint16_t seen)
{
	if (features.event_idx)
		store16(avail_event(ring), seen);
	else
		store16(ring->used + RING_FLAGS, 0);
	atomic_thread_fence(memory_order_seq_cst); /* D */
	if (load16_acquire(ring->avail + RING_IDX) != seen) { /* A */
		mv_ring_refuse_kicks(ring, features);
		return false;
	}
	ring->armed = true;
	return true;
}
