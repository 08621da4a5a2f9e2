/*
 * What the ring core is compared with: a device that trusts its driver.
 *
 * It makes the memory accesses that no device can leave out (index, ring entry, descriptor, the
 * bytes themselves, used entry, used index) and nothing else. It checks nothing, keeps no counters
 * and takes every chain for one descriptor in one region. No device that faces a guest may be like
 * that; it says how fast this machine could be.
 */
#include <stdint.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

struct ceiling {
	const uint8_t *desc;
	const uint8_t *avail;
	uint8_t *used;
	uint8_t *memory;	/* where guest address 0 is mapped */
	uint32_t size;
	uint16_t index;		/* of the next chain */
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

/* The next chain's only descriptor; its used entry says that `written` bytes were written. */
static struct desc take_desc(struct ceiling *ring, uint32_t written)
{
	uint32_t slot = ring->index++ & (ring->size - 1);
	uint16_t head;
	struct desc desc;
	struct used_elem elem;

	memcpy(&head, ring->avail + 4 + 2 * slot, sizeof(head));
	memcpy(&desc, ring->desc + sizeof(desc) * head, sizeof(desc));
	elem = (struct used_elem){ .id = head, .len = written };
	memcpy(ring->used + 4 + sizeof(elem) * slot, &elem, sizeof(elem));
	return desc;
}

static uint8_t *take(struct ceiling *ring, uint32_t written)
{
	return ring->memory + take_desc(ring, written).addr;
}

static void publish(struct ceiling *ring)
{
	__atomic_store_n((uint16_t *)(void *)(ring->used + 2), ring->index, __ATOMIC_RELEASE);
}

/* Copy the first `length` bytes of each of the next `count` chains to `into`. */
EXPORTED void ceiling_take(struct ceiling *ring, uint32_t count, uint8_t *into, uint32_t length)
{
	for (uint32_t i = 0; i < count; i++)
		memcpy(into, take(ring, 0), length);
	publish(ring);
}

/* Copy `length` bytes to each of the next `count` chains. */
EXPORTED void ceiling_give(struct ceiling *ring, uint32_t count, const uint8_t *from, uint32_t length)
{
	for (uint32_t i = 0; i < count; i++)
		memcpy(take(ring, length), from, length);
	publish(ring);
}

/*
 * Route the next `count` chains of one ring to another: both MAC addresses, the TTL and the IPv4
 * checksum are rewritten, and everything is copied once. No table is looked into.
 */
EXPORTED void ceiling_route(struct ceiling *from, struct ceiling *to, uint32_t count)
{
	static const uint8_t macs[12] = { 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1 };
	enum { HEADER = 12, IP = HEADER + 14, TTL = IP + 8, CHECKSUM = IP + 10 };

	for (uint32_t i = 0; i < count; i++) {
		struct desc desc = take_desc(from, 0);
		uint8_t *target = take(to, desc.len);

		memcpy(target, from->memory + desc.addr, desc.len);
		memcpy(target + HEADER, macs, sizeof(macs));
		target[TTL]--;
		target[CHECKSUM]++;
	}
	publish(to);
	publish(from);
}
