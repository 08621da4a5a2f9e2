/*
 * Split virtqueues, seen from the device (virtio 1.2, 2.7), and what they share with packed ones,
 * to whose functions in packed.c each function here passes on a ring that is packed.
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
#include "vring.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

enum {
	AVAIL_F_NO_INTERRUPT = 1,
	USED_F_NO_NOTIFY = 1,

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

_Static_assert(sizeof(struct desc) == DESC_SIZE, "struct virtq_desc");
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

/* ---- where the ring is ---- */

static bool misaligned(const struct mv_ring_addr *addr)
{
	return addr->desc % DESC_ALIGN || addr->avail % AVAIL_ALIGN || addr->used % USED_ALIGN;
}

static bool ring_overlaps_itself(unsigned int size, const struct mv_ring_addr *addr)
{
	size_t desc = desc_bytes(size), avail = avail_bytes(size), used = used_bytes(size);

	return parts_overlap(addr->desc, desc, addr->avail, avail) ||
	       parts_overlap(addr->desc, desc, addr->used, used) ||
	       parts_overlap(addr->avail, avail, addr->used, used);
}

static int translate_split(struct mv_ring *ring, const mv_memory *memory, unsigned int size,
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
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	return 0;
}

int mv_ring_translate(struct mv_ring *ring, const mv_memory *memory, bool packed,
		      unsigned int size, const struct mv_ring_addr *addr)
{
	int r = packed ? mv_packed_translate(ring, memory, size, addr) :
			 translate_split(ring, memory, size, addr);

	if (r == 0) {
		ring->packed = packed;
		ring->size = size;
		ring->addr = *addr;
		/* Nobody knows what the driver was told there. */
		ring->refused = false;
	}
	return r;
}

static void begin_split(struct mv_ring *ring, int64_t base)
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
}

void mv_ring_begin(struct mv_ring *ring, int64_t base)
{
	if (ring->packed)
		mv_packed_begin(ring, base);
	else
		begin_split(ring, base);
	ring->signalled_valid = false;
	ring->armed = false;
	ring->most = 0;
	ring->starved = false;
	ring->broken = false;
	ring->running = true;
}

int64_t mv_ring_base(const struct mv_ring *ring)
{
	return ring->packed ? mv_packed_base(ring) : ring->last_avail;
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
	uint16_t n;

	if (ring->packed)
		return mv_packed_available(ring);
	n = (uint16_t)(load16_acquire(ring->avail + RING_IDX) - ring->last_avail); /* A */
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

enum link { LINK_END, LINK_INDIRECT, LINK_BAD };

/*
 * Follow the links from `index`. LINK_BAD: the table itself is wrong. LINK_INDIRECT: the chain
 * goes on in the table that *last describes.
 */
static enum link follow(struct mv_chain *chain, const struct table *table, unsigned int index,
			enum mv_direction direction, struct desc *last)
{
	for (unsigned int n = 0; n < table->size; n++) {
		/* So long a chain is legal in a ring that large, but no frame needs it. */
		if (chain->n_descs++ == MV_MAX_CHAIN) {
			chain->faulty = true;
			return LINK_END;
		}
		if (index >= table->size || !load_desc(table, index, last))
			return LINK_BAD;
		if (last->flags & DESC_F_INDIRECT)
			return LINK_INDIRECT;
		add_desc(chain, table->memory, direction, last->addr, last->len, last->flags);
		if (!(last->flags & DESC_F_NEXT))
			return LINK_END;
		index = last->next;
	}
	return LINK_BAD;
}

/* The whole chain: descriptors of the ring, the last of which may name an indirect table. */
static bool walk(const struct mv_ring *ring, struct mv_ring_features features,
		 const mv_memory *memory, enum mv_direction direction, struct mv_chain *chain)
{
	struct table table = { .memory = memory, .host = ring->desc, .size = ring->size };
	struct desc last;
	enum link end = follow(chain, &table, chain->head, direction, &last);

	if (end == LINK_INDIRECT) {
		if (!features.indirect || (last.flags & DESC_F_NEXT) ||
		    !table_is_sane(last.len, ring->size))
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
	if (ring->packed)
		return mv_packed_peek(ring, features, memory, direction, chain);
	chain->head = load16(avail_entry(ring, ring->last_avail));
	begin_chain(chain);
	if (chain->head < ring->size && walk(ring, features, memory, direction, chain))
		return true;
	mv_ring_break(ring);
	return false;
}

void mv_ring_look_ahead(const struct mv_ring *ring, const mv_memory *memory,
			enum mv_direction direction, unsigned int n, struct mv_ahead *ahead)
{
	struct desc desc;

	ahead->n = n;
	ahead->next = 0;
	if (ring->packed) {
		mv_packed_look_ahead(ring, memory, direction, ahead);
		return;
	}
	for (unsigned int i = 0; i < n; i++) {
		struct mv_slot *slot = &ahead->slots[i];

		slot->host = NULL;
		slot->head = load16(avail_entry(ring, (uint16_t)(ring->last_avail + i)));
		if (slot->head >= ring->size)
			continue;
		memcpy(&desc, ring->desc + sizeof(desc) * slot->head, sizeof(desc));
		mv_load_once();
		if (desc.flags == (direction == MV_TO_DRIVER ? DESC_F_WRITE : 0))
			fill_slot(slot, memory, direction, desc.addr, desc.len);
	}
}

void mv_ring_take(struct mv_ring *ring, uint16_t head, uint16_t slots, uint32_t written)
{
	struct used_elem elem = { .id = head, .len = written };
	unsigned int slot = ring->used_idx & (ring->size - 1);

	if (ring->packed) {
		mv_packed_take(ring, head, slots, written);
		return;
	}
	memcpy(ring->used + RING_ENTRIES + sizeof(elem) * slot, &elem, sizeof(elem));
	ring->used_idx++;
	ring->last_avail++;
}

void mv_ring_untake(struct mv_ring *ring, unsigned int n)
{
	if (ring->packed) {
		mv_packed_untake(ring, n);
		return;
	}
	ring->used_idx = (uint16_t)(ring->used_idx - n);
	ring->last_avail = (uint16_t)(ring->last_avail - n);
}

void mv_ring_void(struct mv_ring *ring, unsigned int n)
{
	if (ring->packed) {
		mv_packed_void(ring, n);
		return;
	}
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
	if (ring->packed) {
		mv_packed_show(ring);
		return;
	}
	if (ring->published == ring->used_idx)
		return;
	store16_release(ring->used + RING_IDX, ring->used_idx); /* B */
	ring->published = ring->used_idx;
}

bool mv_ring_publish(struct mv_ring *ring, struct mv_ring_features features)
{
	if (ring->packed)
		return mv_packed_publish(ring, features) && mv_ring_call(ring);
	mv_ring_show(ring);
	if (ring->published == ring->signalled)
		return false;
	return wants_call(ring, features) && mv_ring_call(ring);
}

bool mv_ring_owes_call(const struct mv_ring *ring, struct mv_ring_features features)
{
	if (ring->packed)
		return mv_packed_owes_call(ring, features);
	if (!features.event_idx)
		return (ring->published > 0 || ring->signalled_valid) &&
		       !(load16(ring->avail + RING_FLAGS) & AVAIL_F_NO_INTERRUPT);
	return passes_event(load16(used_event(ring)), ring->published,
			    (uint16_t)(ring->published - ring->size));
}

/*
 * With EVENT_IDX a split ring has no way to refuse kicks, but avail_event can name an index that the
 * driver does not come across. Of what it has published since it looked last, `old` to `new` - 1, it
 * kicks if avail_event is in it (virtio 1.2, 2.7.10). It may look late: it publishes a batch one by one
 * and then looks once (xmit_more of Linux), and the device takes from the batch meanwhile. So an index
 * just passed is not good enough: it would be one of those that are looked at.
 *
 * Be r refused_at, and L last_avail when the driver looks. Then avail_event is r - BEHIND, and
 * r <= L <= r + KEPT_FOR + t, where t is what one turn takes in its 50 us: less than 0x2000.
 * - Ahead: the driver has no more buffers out than the largest ring, so new - 1 < L + 0x8000, which is
 *   less than r + 0xc000. That is r - BEHIND, once round.
 * - Behind: old >= L - n >= r - n, where n are those that were taken before it looked: more than
 *   r - BEHIND, as long as n < BEHIND.
 * And whatever a driver does, it comes across an index once in 65,536, so it kicks for nothing at most
 * once for each time that avail_event is written: once in KEPT_FOR buffers.
 *
 * An RX ring is told when it starts and by each flush, but not by the frames that go straight to it. So
 * its driver kicks for nothing once in 65,536 buffers at most.
 */
enum {
	BEHIND = 0x4000,
	KEPT_FOR = 0x2000,
};

/* Whether the driver was told that no kick is needed, in a way that still holds. */
static bool knows_of_refusal(const struct mv_ring *ring, struct mv_ring_features features)
{
	if (ring->packed || !features.event_idx)
		return ring->refused;
	return ring->refused && (uint16_t)(ring->last_avail - ring->refused_at) <= KEPT_FOR;
}

void mv_ring_refuse_kicks(struct mv_ring *ring, struct mv_ring_features features)
{
	ring->armed = false;
	if (knows_of_refusal(ring, features))
		return;
	ring->refused = true;
	ring->refused_at = ring->last_avail;
	if (ring->packed)
		mv_packed_refuse_kicks(ring);
	else if (features.event_idx)
		store16(avail_event(ring), (uint16_t)(ring->last_avail - BEHIND));
	else
		store16(ring->used + RING_FLAGS, USED_F_NO_NOTIFY);
}

static void want_kick(struct mv_ring *ring, struct mv_ring_features features, uint16_t seen)
{
	ring->refused = false;
	if (ring->packed)
		mv_packed_want_kick(ring, features, seen);
	else if (features.event_idx)
		store16(avail_event(ring), seen);
	else
		store16(ring->used + RING_FLAGS, 0);
}

bool mv_ring_goes_beyond(const struct mv_ring *ring, uint16_t seen)
{
	if (ring->packed)
		return mv_packed_goes_beyond(ring, seen);
	return load16_acquire(ring->avail + RING_IDX) != seen; /* A */
}

bool mv_ring_ask_for_kick(struct mv_ring *ring, struct mv_ring_features features, uint16_t seen)
{
	want_kick(ring, features, seen);
	atomic_thread_fence(memory_order_seq_cst); /* D */
	if (mv_ring_goes_beyond(ring, seen)) {
		mv_ring_refuse_kicks(ring, features);
		return false;
	}
	ring->armed = true;
	return true;
}
