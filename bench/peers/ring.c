/*
 * As fast as a simple router can be: `ring EAL-OPTIONS -- GATEWAY SOCKET MAC SOCKET MAC`.
 *
 * One thread polls the TX rings of two vhost-user devices and copies each frame once, into a buffer
 * of the other device's RX ring, with the hop of a router: MAC addresses, TTL, checksum. DPDK's
 * librte_vhost does no more than agree with the driver on where everything is.
 *
 * It is a measure, not a backend. It believes whatever it reads in guest memory: that a frame is
 * IPv4 and for the other port, that it is in one descriptor and fits, that the driver polls, that
 * the entries of a ring are a power of two. It says "ready" when it listens.
 */
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>

#include <rte_eal.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_vhost.h>

enum {
	BURST = 32,
	RX = 0,			/* from the guest's view */
	TX = 1,
	HEADER = sizeof(struct virtio_net_hdr_mrg_rxbuf),
	MACS = 2 * RTE_ETHER_ADDR_LEN,
	TTL_AT = RTE_ETHER_HDR_LEN + offsetof(struct rte_ipv4_hdr, time_to_live),
	AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL,
	USED = 1 << VRING_PACKED_DESC_F_USED,
};

/* All that a driver could ask of a device for a frame; none of it is here. */
static const uint64_t offloads =
	1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 |
	1 << VIRTIO_NET_F_GUEST_TSO6 | 1 << VIRTIO_NET_F_GUEST_ECN | 1 << VIRTIO_NET_F_GUEST_UFO |
	1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6 | 1 << VIRTIO_NET_F_HOST_ECN |
	1 << VIRTIO_NET_F_HOST_UFO;

/* What comes before each frame: nothing is asked for, and it is in one buffer. */
static const struct virtio_net_hdr_mrg_rxbuf header = { .num_buffers = 1 };

/*
 * Buffers go back in the order in which they come, so that there is one place in a ring. A packed
 * ring's wrap counters are 1 in those laps in which the bit of `size` in `next` is 0.
 */
struct queue {
	struct rte_vhost_vring ring;
	uint16_t next;
	uint16_t known;		/* split: the driver's index when it was last looked at */
};

static struct device {
	const char *path;
	struct rte_ether_addr macs[2];	/* of frames to this port */
	struct rte_vhost_memory *memory;
	struct queue queues[2];
	bool packed;
	atomic_bool there;	/* a frontend */
} devices[2];

static atomic_ulong turns;	/* of the router, which have ended */

struct buffer {
	uint8_t *data;
	uint32_t length;
	uint16_t id;
};

static struct device *device_of(int vid)
{
	char path[PATH_MAX];

	if (rte_vhost_get_ifname(vid, path, sizeof(path)))
		return NULL;
	return strcmp(path, devices[0].path) ? &devices[1] : &devices[0];
}

static int come(int vid)
{
	struct device *device = device_of(vid);
	uint64_t features;

	if (!device || rte_vhost_get_mem_table(vid, &device->memory) ||
	    rte_vhost_get_negotiated_features(vid, &features))
		return -1;
	device->packed = features >> VIRTIO_F_RING_PACKED & 1;
	for (uint16_t i = RX; i <= TX; i++) {
		device->queues[i] = (struct queue){ .next = 0 };
		if (rte_vhost_get_vhost_vring(vid, i, &device->queues[i].ring) ||
		    rte_vhost_enable_guest_notification(vid, i, 0))
			return -1;
	}
	atomic_store(&device->there, true);
	return 0;
}

/*
 * The memory is gone when this returns, so that the router's turn has to be over. It may be in the
 * next one by the time that the end of one is seen.
 */
static void go(int vid)
{
	struct device *device = device_of(vid);
	unsigned long turn;

	if (!device || !atomic_exchange(&device->there, false))
		return;
	turn = atomic_load(&turns);
	while (atomic_load(&turns) - turn < 2)
		sched_yield();
	free(device->memory);
}

static const struct rte_vhost_device_ops events = { .new_device = come, .destroy_device = go };

static uint8_t *translate(const struct device *device, uint64_t address)
{
	uint64_t length = 1;

	return (uint8_t *)rte_vhost_va_from_guest_pa(device->memory, address, &length);
}

static unsigned int count_split(struct queue *queue, unsigned int most)
{
	if ((uint16_t)(queue->known - queue->next) < most)
		queue->known = __atomic_load_n(&queue->ring.avail->idx, __ATOMIC_ACQUIRE);
	return RTE_MIN((uint16_t)(queue->known - queue->next), most);
}

static unsigned int count_packed(const struct queue *queue, unsigned int most)
{
	unsigned int count = 0;

	while (count < most) {
		uint16_t next = (uint16_t)(queue->next + count), size = queue->ring.size;
		uint16_t flags = __atomic_load_n(
			&queue->ring.desc_packed[next & (size - 1)].flags, __ATOMIC_ACQUIRE);

		if ((flags & (AVAIL | USED)) != (next & size ? USED : AVAIL))
			break;
		count++;
	}
	return count;
}

/* How many buffers the driver has put there, up to `most`. */
static unsigned int count_buffers(struct device *device, unsigned int number, unsigned int most)
{
	struct queue *queue = &device->queues[number];

	return device->packed ? count_packed(queue, most) : count_split(queue, most);
}

/* The buffer that is so many after the next one. */
static struct buffer look_up(const struct device *device, const struct queue *queue, unsigned int i)
{
	const struct rte_vhost_vring *ring = &queue->ring;
	unsigned int slot = (queue->next + i) & (ring->size - 1U);

	if (device->packed) {
		const struct vring_packed_desc *desc = &ring->desc_packed[slot];

		return (struct buffer){ translate(device, desc->addr), desc->len, desc->id };
	}
	uint16_t id = ring->avail->ring[slot];

	return (struct buffer){ translate(device, ring->desc[id].addr), ring->desc[id].len, id };
}

/* Drivers use descriptors in the same order again and again: what already stands there is left alone. */
static void give_back_split(struct queue *queue, const struct buffer *buffers, unsigned int count)
{
	struct vring_used *used = queue->ring.used;

	for (unsigned int i = 0; i < count; i++) {
		struct vring_used_elem *elem =
			&used->ring[(queue->next + i) & (queue->ring.size - 1U)];

		if (elem->id != buffers[i].id || elem->len != buffers[i].length)
			*elem = (struct vring_used_elem){ buffers[i].id, buffers[i].length };
	}
	queue->next = (uint16_t)(queue->next + count);
	__atomic_store_n(&used->idx, queue->next, __ATOMIC_RELEASE);
}

/* Length, number and flags of a descriptor. */
typedef uint64_t __attribute__((may_alias)) packed_word;

/* The first one last: it is the one that the driver looks at, and it takes its line away each time. */
static void give_back_packed(struct queue *queue, const struct buffer *buffers, unsigned int count)
{
	uint16_t size = queue->ring.size;

	for (unsigned int i = count; i-- > 0;) {
		uint16_t at = (uint16_t)(queue->next + i);
		struct vring_packed_desc *desc = &queue->ring.desc_packed[at & (size - 1)];
		uint64_t flags = at & size ? 0 : AVAIL | USED;

		__atomic_store_n((packed_word *)&desc->len,
				 buffers[i].length | (uint64_t)buffers[i].id << 32 | flags << 48,
				 __ATOMIC_RELEASE);
	}
	queue->next = (uint16_t)(queue->next + count);
}

static void give_back(struct device *device, unsigned int number, const struct buffer *buffers,
		      unsigned int count)
{
	struct queue *queue = &device->queues[number];

	if (device->packed)
		give_back_packed(queue, buffers, count);
	else
		give_back_split(queue, buffers, count);
}

/*
 * The one copy, with the hop of a router on its way: RFC 1812, 5.2.1 and 5.3.1. TTL, protocol, checksum
 * and source are one little-endian number: to load what was just stored in other pieces
 * would stall the processor. The sum follows a TTL that is one less (RFC 1141).
 */
static void copy_frame(uint8_t *into, const uint8_t *frame, uint32_t length,
		       const struct device *to)
{
	uint64_t word;
	uint32_t sum, done = TTL_AT + sizeof(word);

	memcpy(&word, frame + TTL_AT, sizeof(word));
	sum = (uint16_t)(word >> 16) + 1U;
	sum = (uint16_t)(sum + (sum >> 16));
	word = ((word & ~UINT64_C(0xffff0000)) - 1) | (uint64_t)sum << 16;
	memcpy(into, to->macs, MACS);
	memcpy(into + MACS, frame + MACS, TTL_AT - MACS);
	memcpy(into + TTL_AT, &word, sizeof(word));
	memcpy(into + done, frame + done, length - done);
}

/* A header that a buffer still has from another frame is not written: its line stays everybody's. */
static void fill(struct buffer *buffer, const struct buffer *sent, const struct device *to)
{
	if (memcmp(buffer->data, &header, HEADER))
		memcpy(buffer->data, &header, HEADER);
	copy_frame(buffer->data + HEADER, sent->data + HEADER, sent->length - HEADER, to);
	buffer->length = sent->length;
}

static void pass_on(struct device *from, struct device *to)
{
	struct buffer sent[BURST], filled[BURST];
	unsigned int count = count_buffers(from, TX, BURST);

	if (count)
		count = count_buffers(to, RX, count);
	if (!count)
		return;
	for (unsigned int i = 0; i < count; i++) {
		sent[i] = look_up(from, &from->queues[TX], i);
		filled[i] = look_up(to, &to->queues[RX], i);
		__builtin_prefetch(sent[i].data + HEADER);
		__builtin_prefetch(filled[i].data + HEADER, 1);
	}
	for (unsigned int i = 0; i < count; i++) {
		fill(&filled[i], &sent[i], to);
		sent[i].length = 0;	/* nothing was written there */
	}
	give_back(to, RX, filled, count);
	give_back(from, TX, sent, count);
}

static void __attribute__((noreturn)) serve(void)
{
	for (unsigned long turn = 1;; turn++) {
		if (atomic_load(&devices[0].there) && atomic_load(&devices[1].there)) {
			pass_on(&devices[0], &devices[1]);
			pass_on(&devices[1], &devices[0]);
		}
		/* No more than this: an addition would wait for all that was stored. */
		atomic_store_explicit(&turns, turn, memory_order_release);
	}
}

static int listen_on(struct device *device, const char *gateway, const char *path, const char *mac)
{
	device->path = path;
	if (rte_ether_unformat_addr(mac, &device->macs[0]) ||
	    rte_ether_unformat_addr(gateway, &device->macs[1]) ||
	    rte_vhost_driver_register(path, 0) ||
	    rte_vhost_driver_disable_features(path, offloads) ||
	    rte_vhost_driver_callback_register(path, &events))
		return -1;
	return rte_vhost_driver_start(path);
}

int main(int count, char **arguments)
{
	int used = rte_eal_init(count, arguments);

	if (used < 0 || count - used != 6)
		return EXIT_FAILURE;
	arguments += used + 1;
	if (listen_on(&devices[0], arguments[0], arguments[1], arguments[2]) ||
	    listen_on(&devices[1], arguments[0], arguments[3], arguments[4]))
		return EXIT_FAILURE;
	puts("ready");
	fflush(stdout);
	serve();
}
