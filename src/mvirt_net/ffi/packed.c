/*
 * Packed virtqueues, seen from the device (virtio 1.2, 2.8). What is said at the head of vring.c of
 * hostile drivers holds here too.
 *
 * Theory of operation. There is one ring of descriptors, which the driver makes available and the
 * device overwrites when it has used them. Who has a descriptor is told by two bits of its flags,
 * and by a wrap counter that turns round each time its side gets to the end of the ring. A place in
 * the ring is a *position*: a slot, and in bit 15 the wrap counter there. This device completes in
 * order, so it has one position (last_avail) and not two: what is taken at a slot is returned there.
 *
 * A used descriptor is written to the slot of its chain's first one, over what the driver wrote. A
 * driver looks at the first slot that it has not seen used, and goes on from there; so a batch stays
 * invisible until its first descriptor is marked used, which is done last. Nothing at all is written
 * before that: what was taken is kept in ring->taken until it is published. So untake() has nothing
 * to restore, void() changes private memory only, and a device that is killed while it moves frames
 * leaves the ring as it was. The price is 8 bytes for each slot of a running ring, up to 16 KiB.
 *
 * What the driver has made available is counted by looking ahead in the flags: on from where it was
 * looked before (ring->looked), so that each slot costs one look, and a bounded number of slots at
 * once. A first descriptor that is available stands for its chain whatever the others look like, as
 * it does in mv_packed_peek(). What was counted is only a hint: peek() looks again, and a descriptor
 * that has been taken back meanwhile breaks the ring.
 *
 * Where a ring stands when the device starts. In 32 bits SET_VRING_BASE has the position of the next
 * available descriptor and above it that of the next used one. Where they differ, buffers were taken
 * and not returned, and this device starts with them: the driver waits at the used position for
 * ever. Some frontends leave the upper half 0, which says nothing (as a position it would be slot 0
 * with the counter at 0, and then the lower half says the same).
 *
 * A frontend whose device was killed does not know the position (for a split ring it is in guest
 * memory), and QEMU says slot 0 then, where every ring begins. As long as no chain takes up several
 * slots, the ring itself knows better: the device turns the USED bit of each slot that it gets past,
 * and the driver keeps the bit when it makes the slot available again. So all slots before the
 * position have one value, all from there on the other. With chains of several slots that is not so;
 * a used descriptor keeps the NEXT bit of its chain (drivers have to ignore it), and if any is there,
 * or the ring does not fit together, the frontend is believed. So is one that names another slot
 * than 0: what it says it has from a device that was stopped.
 *
 * Barriers, by letter as in vring.c; the partner of each stands in the driver:
 *   A  acquire load of a first descriptor's flags: with the driver's release of them after filling
 *      the chain.
 *   B  release store of the flags of a batch's first used descriptor: with the driver's acquire of
 *      them before reading it and those that follow.
 *   C  full fence between B and loading the driver event area: with the driver's fence between
 *      storing that and loading flags. One side sees the other.
 *   D  full fence between storing the device event area and loading flags: with the driver's fence
 *      between storing flags and loading that area. One side sees the other.
 */
#include "vring.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

enum {
	DESC_F_AVAIL = 1 << 7,
	DESC_F_USED = 1 << 15,

	/* struct pvirtq_event_suppress: a position, and how to take it. */
	EVENT_SIZE = 4,
	EVENT_ALIGN = 4,
	EVENT_ENABLE = 0,
	EVENT_DISABLE = 1,
	EVENT_DESC = 2,		/* only with EVENT_IDX */
	EVENT_MASK = 3,

	WRAP = 1 << 15,		/* of a position */
	BEGINNING = WRAP,	/* where a ring begins */

	/*
	 * Slots that are looked at at once; those behind them are found the next time. A batch of
	 * chains that take two slots each (DPDK; one slot at a time: 2.6 with 64 bytes, 1.8 with 1500).
	 */
	LOOK_AHEAD = 2 * MV_AHEAD,
};

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

_Static_assert(sizeof(struct desc) == DESC_SIZE, "struct pvirtq_desc");

/* The second half of a used descriptor; the address in the first is unused. */
struct used {
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

_Static_assert(sizeof(struct used) == sizeof(uint64_t), "one store");

/* ---- positions ---- */

static unsigned int slot_of(uint16_t position)
{
	return position & (WRAP - 1);
}

/* The position `n` slots on, at most once round the ring. */
static uint16_t forward(const struct mv_ring *ring, uint16_t position, unsigned int n)
{
	unsigned int slot = slot_of(position) + n;
	unsigned int wrap = position & WRAP;

	if (slot >= ring->size) {
		slot -= ring->size;
		wrap ^= WRAP;
	}
	return (uint16_t)(slot | wrap);
}

static uint16_t back(const struct mv_ring *ring, uint16_t position, unsigned int n)
{
	/* Once round the ring turns the wrap counter, and what is left goes forward. */
	return forward(ring, position ^ WRAP, ring->size - n);
}

static uint8_t *desc_at(const struct mv_ring *ring, unsigned int slot)
{
	return ring->desc + (size_t)slot * DESC_SIZE;
}

static uint8_t *flags_at(const struct mv_ring *ring, unsigned int slot)
{
	return desc_at(ring, slot) + offsetof(struct desc, flags);
}

/* Whether a descriptor at this position is the device's: AVAIL as the wrap counter, USED not. */
static bool is_available(uint16_t flags, uint16_t position)
{
	return (flags & (DESC_F_AVAIL | DESC_F_USED)) == (position & WRAP ? DESC_F_AVAIL : DESC_F_USED);
}

/* ---- where the ring is ---- */

static bool misaligned(uint64_t desc, uint64_t driver, uint64_t device)
{
	return desc % DESC_ALIGN || driver % EVENT_ALIGN || device % EVENT_ALIGN;
}

static bool ring_overlaps_itself(unsigned int size, const struct mv_ring_addr *addr)
{
	size_t desc = (size_t)DESC_SIZE * size;

	return parts_overlap(addr->desc, desc, addr->avail, EVENT_SIZE) ||
	       parts_overlap(addr->desc, desc, addr->used, EVENT_SIZE) ||
	       parts_overlap(addr->avail, EVENT_SIZE, addr->used, EVENT_SIZE);
}

int mv_packed_translate(struct mv_ring *ring, const mv_memory *memory, unsigned int size,
			const struct mv_ring_addr *addr)
{
	uint8_t *desc, *driver, *device;

	if (size == 0 || size > MV_MAX_RING_SIZE)
		return -EINVAL;
	if (misaligned(addr->desc, addr->avail, addr->used) || ring_overlaps_itself(size, addr))
		return -EINVAL;
	if (!memory)
		return -EFAULT;
	desc = mv_memory_user(memory, addr->desc, (uint64_t)DESC_SIZE * size);
	driver = mv_memory_user(memory, addr->avail, EVENT_SIZE);
	device = mv_memory_user(memory, addr->used, EVENT_SIZE);
	if (!desc || !driver || !device)
		return -EFAULT;
	/* A region may be mapped at any distance from its user address, so even ones are checked. */
	if (misaligned((uintptr_t)desc, (uintptr_t)driver, (uintptr_t)device))
		return -EINVAL;
	ring->desc = desc;
	ring->avail = driver;
	ring->used = device;
	return 0;
}

/* Whether once round the ring there are available descriptors first, and then no more of them. */
static bool may_stand_at(const struct mv_ring *ring, uint16_t position)
{
	bool before = true;

	for (unsigned int n = 0; n < ring->size; n++) {
		bool now = mv_packed_goes_beyond(ring, forward(ring, position, n));

		if (now && !before)
			return false;
		before = now;
	}
	return true;
}

/* Where the USED bits of the ring say that it stands; `otherwise` if they do not. */
static uint16_t find_position(const struct mv_ring *ring, uint16_t otherwise)
{
	uint16_t found;
	uint16_t first = load16(flags_at(ring, 0)) & DESC_F_USED, last = first;
	unsigned int turns = 0, turned_at = 0;

	for (unsigned int slot = 0; slot < ring->size; slot++) {
		uint16_t flags = load16(flags_at(ring, slot));

		if (flags & DESC_F_NEXT)
			return otherwise;
		if ((flags & DESC_F_USED) != last) {
			last ^= DESC_F_USED;
			turned_at = slot;
			turns++;
		}
	}
	/* The bit before the position is the wrap counter there. */
	found = turns == 1 ? (uint16_t)(turned_at | first) : first ^ WRAP;
	return turns <= 1 && may_stand_at(ring, found) ? found : otherwise;
}

_Static_assert((int)DESC_F_USED == (int)WRAP, "one is made from the other");

void mv_packed_begin(struct mv_ring *ring, int64_t base)
{
	uint16_t avail = (uint16_t)base, used = (uint16_t)(base >> 16);
	uint16_t position = used ? used : avail;

	if (base < 0)
		position = BEGINNING;
	if (slot_of(position) == 0)
		position = find_position(ring, position);
	ring->last_avail = position;
	ring->used_idx = position;
	ring->published = position;
	ring->n_taken = 0;
	ring->taken_slots = 0;
	ring->untold = 0;
	ring->looked = 0;
	ring->counted = 0;
}

int64_t mv_packed_base(const struct mv_ring *ring)
{
	return ring->published | (int64_t)ring->published << 16;
}

/* ---- taking chains ---- */

/* Look on from where it was looked before, but not at what is taken and unpublished. */
static void look_ahead(struct mv_ring *ring)
{
	unsigned int left = ring->size - ring->taken_slots - ring->looked;
	uint16_t position = forward(ring, ring->last_avail, ring->looked);

	for (unsigned int n = left < LOOK_AHEAD ? left : LOOK_AHEAD; n > 0; n--) {
		uint16_t flags = load16_acquire(flags_at(ring, slot_of(position))); /* A */

		if (!is_available(flags, position))
			return;
		ring->looked++;
		ring->counted += !(flags & DESC_F_NEXT);
		position = forward(ring, position, 1);
	}
}

unsigned int mv_packed_available(struct mv_ring *ring)
{
	unsigned int room = mv_most_taken(ring) - ring->n_taken, n;

	look_ahead(ring);
	n = ring->counted == 0 && ring->looked > 0 ? 1 : ring->counted;
	/* What is taken and unpublished is available, too, as far as the driver knows. */
	if (ring->n_taken + n > ring->most)
		ring->most = ring->n_taken + n;
	return n < room ? n : room;
}

/* Load one descriptor of the ring, once. */
static struct desc load_desc(const struct mv_ring *ring, uint16_t position)
{
	struct desc desc;

	memcpy(&desc, desc_at(ring, slot_of(position)), sizeof(desc));
	mv_load_once();
	return desc;
}

/*
 * Whether the first descriptor of a table is a header as DPDK's driver describes it: for the device to
 * write, though it is part of a packet to be sent (net_virtio of 22.11, with packed rings). What it was
 * tried with does not look at that flag, and here the header is only ever read.
 */
static bool is_header_of_dpdk(enum mv_direction direction, const struct desc *table,
			      const struct desc *desc)
{
	return direction == MV_FROM_DRIVER && table->len > DESC_SIZE &&
	       desc->len == sizeof(struct mv_net_hdr);
}

/* The buffers of an indirect table (virtio 1.2, 2.8.7): all of it, whatever its flags; WRITE counts. */
static bool add_table(struct mv_chain *chain, const mv_memory *memory, enum mv_direction direction,
		      const struct desc *table)
{
	for (uint32_t offset = 0; offset < table->len; offset += DESC_SIZE) {
		struct desc desc;

		if (chain->n_descs++ == MV_MAX_CHAIN) {
			chain->faulty = true;
			return true;
		}
		if (mv_memory_read(memory, table->addr + offset, &desc, sizeof(desc)) < 0)
			return false;
		if (offset == 0 && is_header_of_dpdk(direction, table, &desc))
			desc.flags &= (uint16_t)~DESC_F_WRITE;
		add_desc(chain, memory, direction, desc.addr, desc.len, desc.flags);
	}
	return true;
}

/*
 * The whole chain, the first descriptor of which is there: it ends without NEXT, and is one
 * descriptor if that names a table. A chain that is too long for any frame is looked through all the
 * same, for where it ends and which id it has.
 */
static bool walk(const struct mv_ring *ring, struct mv_ring_features features,
		 const mv_memory *memory, enum mv_direction direction, struct mv_chain *chain,
		 struct desc desc)
{
	unsigned int most = ring->size - ring->taken_slots;
	uint16_t position = ring->last_avail;

	for (unsigned int slots = 1; slots <= most; slots++) {
		if (chain->n_descs++ >= MV_MAX_CHAIN)
			chain->faulty = true;
		if (desc.flags & DESC_F_INDIRECT)
			return features.indirect && slots == 1 && !(desc.flags & DESC_F_NEXT) &&
			       table_is_sane(desc.len, ring->size) &&
			       add_table(chain, memory, direction, &desc);
		add_desc(chain, memory, direction, desc.addr, desc.len, desc.flags);
		chain->head = desc.id;
		chain->slots = (uint16_t)slots;
		if (!(desc.flags & DESC_F_NEXT))
			return true;
		position = forward(ring, position, 1);
		desc = load_desc(ring, position);
	}
	return false;
}

bool mv_packed_peek(struct mv_ring *ring, struct mv_ring_features features,
		    const mv_memory *memory, enum mv_direction direction, struct mv_chain *chain)
{
	bool was_there = mv_packed_goes_beyond(ring, ring->last_avail);
	struct desc first = load_desc(ring, ring->last_avail);

	begin_chain(chain);
	chain->head = first.id;
	if (was_there && is_available(first.flags, ring->last_avail) &&
	    walk(ring, features, memory, direction, chain, first))
		return true;
	mv_ring_break(ring);
	return false;
}

/* Only up to the first chain of several descriptors: how many that is takes more than a look. */
void mv_packed_look_ahead(const struct mv_ring *ring, const mv_memory *memory,
			  enum mv_direction direction, struct mv_ahead *ahead)
{
	uint16_t flags = direction == MV_TO_DRIVER ? DESC_F_WRITE : 0;
	uint16_t position = ring->last_avail;
	unsigned int left = ring->size - ring->taken_slots;

	if (ahead->n > left)
		ahead->n = left;
	for (unsigned int i = 0; i < ahead->n; i++, position = forward(ring, position, 1)) {
		struct desc desc;

		load16_acquire(flags_at(ring, slot_of(position))); /* A */
		desc = load_desc(ring, position);
		if (!is_available(desc.flags, position) ||
		    (desc.flags & (DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT)) != flags) {
			ahead->n = i;
			return;
		}
		ahead->slots[i].head = desc.id;
		ahead->slots[i].host = NULL;
		fill_slot(&ahead->slots[i], memory, direction, desc.addr, desc.len);
	}
}

void mv_packed_take(struct mv_ring *ring, uint16_t id, uint16_t slots, uint32_t written)
{
	ring->taken[ring->n_taken++] = (struct mv_taken){
		.written = written, .id = id, .slots = slots,
	};
	ring->taken_slots += slots;
	ring->last_avail = forward(ring, ring->last_avail, slots);
	ring->used_idx = ring->last_avail;
	if (ring->counted > 0 && ring->looked >= slots) {
		ring->counted--;
		ring->looked -= slots;
		/* The driver may have joined chains that were counted. */
		if (ring->counted > ring->looked)
			ring->counted = ring->looked;
	} else {
		/* A chain longer than what was looked at: begin behind it. */
		ring->counted = 0;
		ring->looked = 0;
	}
}

void mv_packed_untake(struct mv_ring *ring, unsigned int n)
{
	unsigned int slots = 0;

	ring->counted += n;
	while (n-- > 0)
		slots += ring->taken[--ring->n_taken].slots;
	ring->looked += slots;
	ring->taken_slots -= slots;
	ring->last_avail = back(ring, ring->last_avail, slots);
	ring->used_idx = ring->last_avail;
}

void mv_packed_void(struct mv_ring *ring, unsigned int n)
{
	for (unsigned int i = 1; i <= n; i++)
		ring->taken[ring->n_taken - i].written = 0;
}

/* ---- notifications ---- */

/* Mark a chain's first slot used: length, id and flags in one store, so all of it or nothing. */
static void write_used(const struct mv_ring *ring, uint16_t position, const struct mv_taken *taken,
		       int order)
{
	struct used used = { .len = taken->written, .id = taken->id };
	uint64_t word;

	used.flags = (uint16_t)((position & WRAP ? DESC_F_AVAIL | DESC_F_USED : 0) |
				(taken->written > 0 ? DESC_F_WRITE : 0) |
				(taken->slots > 1 ? DESC_F_NEXT : 0));
	memcpy(&word, &used, sizeof(word));
	__atomic_store_n((uint64_t *)(void *)(desc_at(ring, slot_of(position)) +
					      offsetof(struct desc, len)),
			 word, order);
}

void mv_packed_show(struct mv_ring *ring)
{
	uint16_t position = ring->published;

	if (ring->n_taken == 0)
		return;
	ring->untold += ring->taken_slots;
	for (unsigned int i = 1; i < ring->n_taken; i++) {
		position = forward(ring, position, ring->taken[i - 1].slots);
		write_used(ring, position, &ring->taken[i], __ATOMIC_RELAXED);
	}
	write_used(ring, ring->published, &ring->taken[0], __ATOMIC_RELEASE); /* B */
	ring->published = ring->last_avail;
	ring->n_taken = 0;
	ring->taken_slots = 0;
}

/* The area's two halves come and go in one access. */
static uint32_t load_event(const struct mv_ring *ring)
{
	return __atomic_load_n((const uint32_t *)(const void *)ring->avail, __ATOMIC_RELAXED);
}

static void store_event(const struct mv_ring *ring, unsigned int flags, uint16_t position)
{
	__atomic_store_n((uint32_t *)(void *)ring->used, (uint32_t)flags << 16 | position,
			 __ATOMIC_RELAXED);
}

/* Whether the descriptor that the driver names is one of the last `slots` published. */
static bool names_one_of(const struct mv_ring *ring, uint16_t event, unsigned int slots)
{
	unsigned int now = slot_of(ring->published), slot = slot_of(event);

	if ((event ^ ring->published) & WRAP)
		slot -= ring->size;
	return passes_event((uint16_t)slot, (uint16_t)now, (uint16_t)(now - slots));
}

bool mv_packed_publish(struct mv_ring *ring, struct mv_ring_features features)
{
	bool first = !ring->signalled_valid;
	unsigned int slots;
	uint32_t event;

	mv_packed_show(ring);
	if (ring->untold == 0)
		return false;
	/* Further back than once round the ring there is nothing that can be named. */
	slots = ring->untold < ring->size ? ring->untold : ring->size;
	ring->untold = 0;
	ring->signalled_valid = true;
	atomic_thread_fence(memory_order_seq_cst); /* C */
	event = load_event(ring);
	switch (event >> 16 & EVENT_MASK) {
	case EVENT_DISABLE:
		return false;
	case EVENT_DESC:
		return !features.event_idx || first || names_one_of(ring, (uint16_t)event, slots);
	default:
		return true;
	}
}

bool mv_packed_owes_call(const struct mv_ring *ring, struct mv_ring_features features)
{
	uint32_t event = load_event(ring);

	switch (event >> 16 & EVENT_MASK) {
	case EVENT_DISABLE:
		return false;
	case EVENT_DESC:
		if (features.event_idx)
			return names_one_of(ring, (uint16_t)event, ring->size);
		/* fall through */
	default:
		return ring->published != BEGINNING || ring->signalled_valid;
	}
}

void mv_packed_refuse_kicks(struct mv_ring *ring)
{
	store_event(ring, EVENT_DISABLE, 0);
}

void mv_packed_want_kick(struct mv_ring *ring, struct mv_ring_features features, uint16_t seen)
{
	store_event(ring, features.event_idx ? EVENT_DESC : EVENT_ENABLE, seen);
}

bool mv_packed_goes_beyond(const struct mv_ring *ring, uint16_t seen)
{
	return is_available(load16_acquire(flags_at(ring, slot_of(seen))), seen); /* A */
}
