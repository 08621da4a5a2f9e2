/*
 * Rings, split and packed, in arbitrary memory: two ports whose four rings lie in one image of guest memory, both
 * guests hostile and each able to write to what the other one reads.
 *
 * The input is
 *   - features, layout of memory, and for each ring its size, base and the places of its parts,
 *   - a script: what the daemon does, and what the guests store meanwhile,
 *   - the image, from its first byte on.
 */
#include "common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	PORTS = 2,
	PAGES = 16,
	IMAGE_SIZE = PAGES * MV_PAGE,
	MAX_STEPS = 64,
	MAX_TURNS = 16,		/* calls in a row as long as one says CALL_AGAIN */
};

static const uint64_t FEATURES[8] = {
	MV_F_EVENT_IDX, MV_F_INDIRECT_DESC, MV_F_MRG_RXBUF, MV_F_VERSION_1,
	MV_F_CSUM | MV_F_HOST_TSO4 | MV_F_HOST_TSO6 | MV_F_HOST_ECN | MV_F_HOST_USO, MV_F_GUEST_CSUM,
	MV_F_GUEST_TSO4 | MV_F_GUEST_TSO6 | MV_F_GUEST_ECN, MV_F_GUEST_USO4 | MV_F_GUEST_USO6,
};

/* The same image in one region, and in four: two adjacent, one apart, one at the very end. */
enum { WHOLE, IN_PARTS, LAYOUTS };

static const struct mv_region_spec WHOLE_SPEC[] = {
	{ .guest_addr = 0, .size = IMAGE_SIZE, .user_addr = 0x7f0000000000 },
};
static const struct mv_region_spec PARTS_SPEC[] = {
	{ .guest_addr = 0, .size = 4 * MV_PAGE, .user_addr = 0x7f0000000000 },
	{ .guest_addr = 4 * MV_PAGE, .size = 4 * MV_PAGE, .user_addr = 0x7e0000000000,
	  .mmap_offset = 4 * MV_PAGE },
	{ .guest_addr = UINT64_C(1) << 32, .size = 4 * MV_PAGE, .user_addr = 0x1000,
	  .mmap_offset = 8 * MV_PAGE },
	{ .guest_addr = UINT64_C(0) - 5 * MV_PAGE, .size = 4 * MV_PAGE,
	  .user_addr = 0x7f0000000000 + 8 * MV_PAGE, .mmap_offset = 12 * MV_PAGE },
};

/* Where a ring is to start: places are offsets in the image. */
struct plan {
	uint32_t size;
	uint16_t desc;
	uint16_t avail;
	uint16_t used;
	int base;
};

struct player {
	mv_port *port;
	unsigned int layout;
	bool packed;
	struct plan plans[MV_QUEUES];
	uint64_t enqueued;	/* frames that the daemon had for the guest */
};

struct scene {
	mv_network *network;
	struct player players[PORTS];
};

static struct image image;
static mv_memory *layouts[LAYOUTS];
static int events[3];
static uint8_t punts[MV_PUNT_BYTES];
static uint8_t frame[MV_MAX_FRAME];

static void prepare(void)
{
	if (image.bytes)
		return;
	image = image_new(IMAGE_SIZE);
	layouts[WHOLE] = map_image(&image, WHOLE_SPEC, 1);
	layouts[IN_PARTS] = map_image(&image, PARTS_SPEC, 4);
	for (unsigned int i = 0; i < 3; i++)
		events[i] = event_new();
}

static uint64_t user_addr(unsigned int layout, uint32_t place)
{
	const mv_memory *memory = layouts[layout];

	for (unsigned int i = 0; i < memory->n_regions; i++) {
		const struct mv_region_spec *spec =
			layout == WHOLE ? &WHOLE_SPEC[i] : &PARTS_SPEC[i];

		if (place - spec->mmap_offset < spec->size)
			return spec->user_addr + place - spec->mmap_offset;
	}
	return place;
}

static struct mv_ring_addr ring_addr(const struct player *player, unsigned int queue)
{
	const struct plan *plan = &player->plans[queue];

	return (struct mv_ring_addr){
		.desc = user_addr(player->layout, plan->desc),
		.avail = user_addr(player->layout, plan->avail),
		.used = user_addr(player->layout, plan->used),
	};
}

static struct plan take_plan(struct input *input, bool packed)
{
	uint8_t how = take8(input);
	struct plan plan = { .size = 2U << how % 8 };

	plan.desc = take16(input);
	plan.avail = take16(input);
	plan.used = take16(input);
	plan.base = take16(input);
	/* Mostly places where a ring may be, for there is nothing to see of others. */
	if (how & 0x80) {
		plan.size += how;
	} else {
		plan.desc &= 0xfff0;
		plan.avail &= packed ? 0xfffc : 0xfffe;
		plan.used &= 0xfffc;
	}
	/* Of a packed ring: a position. */
	if (packed)
		plan.base = (int)((uint32_t)plan.base % plan.size % 0x8000) | (plan.base & 0x8000);
	if (how & 0x40)
		plan.base = -1;
	return plan;
}

static void take_player(struct scene *scene, unsigned int i, struct input *input)
{
	struct player *player = &scene->players[i];
	uint8_t features = take8(input), layout = take8(input), family = 0;
	const uint8_t mac[6] = { 0x52, 0x54, 0, 0, 0, (uint8_t)(10 + i) };
	const uint8_t ipv4[4] = { 10, 0, 0, (uint8_t)(1 + i) };
	const uint8_t ipv6[16] = { 0xfd, [15] = (uint8_t)(1 + i) };
	const struct mv_prefix routes[] = { host_prefix(MV_IPV4, ipv4), host_prefix(MV_IPV6, ipv6) };
	uint64_t bits = 0;

	for (; family < 8; family++)
		bits |= features >> family & 1 ? FEATURES[family] : 0;
	player->port = mv_port_new(scene->network, mac, i + 1);
	CHECK(player->port);
	player->layout = layout % LAYOUTS;
	player->packed = layout & 2;
	bits |= player->packed ? MV_F_RING_PACKED : 0;
	CHECK(mv_port_set_routes(player->port, routes, 2) == 0);
	CHECK(mv_port_set_features(player->port, bits) == 0);
	CHECK(mv_port_set_memory(player->port, layouts[player->layout]) == 0);
	if (layout & 0x80)
		mv_port_set_mtu(player->port, 68 + (layout & 0x7cU));
	for (unsigned int queue = 0; queue < MV_QUEUES; queue++)
		player->plans[queue] = take_plan(input, player->packed);
}

/* ---- what the daemon does ---- */

static void start(struct player *player, unsigned int queue)
{
	const struct plan *plan = &player->plans[queue];
	const struct mv_ring_addr addr = ring_addr(player, queue);
	int possible = mv_ring_check(player->port, plan->size, &addr);
	bool runs = player->port->first.rings[queue].running;
	int r = mv_ring_start(player->port, queue, plan->size, &addr, plan->base);

	CHECK(runs ? r == -EBUSY : r == possible);
	CHECK(mv_ring_enable(player->port, queue, true) == 0);
}

static void stop(struct player *player, unsigned int queue)
{
	const struct mv_ring *ring = &player->port->first.rings[queue];
	int64_t base = mv_ring_stop(player->port, queue);

	CHECK(base >= 0 && mv_ring_stop(player->port, queue) == base);
	if (ring->packed)
		CHECK((base & 0xffff) == base >> 16 && (base & 0x7fff) < ring->size);
	else
		CHECK(base <= UINT16_MAX);
	CHECK(!mv_ring_broken(player->port, queue));
	CHECK(queue == MV_TX || mv_port_backlog(player->port) == 0);
}

/* Between calls nothing of a packed ring is taken, and what was counted is within it. */
static void check_packed(const struct player *player, unsigned int queue)
{
	const struct mv_ring *ring = &player->port->first.rings[queue];

	if (!ring->running || !ring->packed)
		return;
	CHECK(ring->n_taken == 0 && ring->taken_slots == 0);
	CHECK(ring->looked <= ring->size && ring->counted <= ring->looked);
	CHECK((ring->last_avail & 0x7fff) < ring->size);
}

static void drain(struct player *player)
{
	struct mv_drained drained;
	int next = MV_NEXT_CALL_AGAIN;

	for (unsigned int n = 0; n < MAX_TURNS && next == MV_NEXT_CALL_AGAIN; n++) {
		next = mv_port_drain(fuzz_worker(), player->port, 0, n, punts, &drained);
		check_drained(next, &drained, PORTS);
	}
}

static void flush(struct player *player)
{
	int next = MV_NEXT_CALL_AGAIN;

	for (unsigned int n = 0; n < MAX_TURNS && next == MV_NEXT_CALL_AGAIN; n++) {
		next = mv_port_flush(player->port, 0);
		CHECK(next >= MV_NEXT_KICK && next <= MV_NEXT_MORE_BUFFERS);
		CHECK(next == MV_NEXT_NOTHING || mv_port_is_up(player->port));
	}
}

static void enqueue(struct player *player, uint16_t length, uint16_t count)
{
	for (unsigned int n = 0; n < 1U + count % 64; n++) {
		int r = mv_port_enqueue(player->port, frame, length + (n & 1U));

		CHECK(r == 0 || r == 1 || r == -EINVAL);
		player->enqueued += r >= 0;
	}
}

/* A table without one of the regions, perhaps one that a running ring is in, and back. */
static void unplug(struct player *player, unsigned int i)
{
	const struct mv_region_spec *specs = player->layout == WHOLE ? WHOLE_SPEC : PARTS_SPEC;
	mv_memory *smaller = mv_memory_copy(layouts[player->layout]);

	CHECK(smaller);
	CHECK(mv_memory_remove(smaller, &specs[i % smaller->n_regions]) == 0);
	if (mv_port_set_memory(player->port, smaller) == 0) {
		drain(player);
		flush(player);
		CHECK(mv_port_set_memory(player->port, layouts[player->layout]) == 0);
	}
	mv_memory_free(smaller);
}

/* The same image in the other layout; running rings stay where the frontend has put them. */
static void change_layout(struct player *player)
{
	unsigned int layout = (player->layout + 1) % LAYOUTS;
	int r = mv_port_set_memory(player->port, layouts[layout]);

	CHECK(r == 0 || r == -EFAULT);
	if (r == 0)
		player->layout = layout;
}

static void move(struct player *player, unsigned int queue, uint16_t by)
{
	struct mv_ring_addr addr = ring_addr(player, queue);

	addr.used += by;
	(void)mv_ring_move(player->port, queue, &addr);
}

/* ---- what the guests do ---- */

static void store16(uint32_t place, uint16_t value)
{
	memcpy(image.bytes + (place & (IMAGE_SIZE - 2)), &value, sizeof(value));
}

static uint16_t load16(uint32_t place)
{
	uint16_t value;

	memcpy(&value, image.bytes + (place & (IMAGE_SIZE - 2)), sizeof(value));
	return value;
}

/* Turn the bits of the next descriptors of a packed ring, whatever else is in them. */
static void offer_packed(const struct player *player, unsigned int queue, unsigned int n)
{
	const struct mv_ring *ring = &player->port->first.rings[queue];
	unsigned int slot = ring->last_avail & 0x7fff, wrap = ring->last_avail >> 15;

	for (; n > 0; n--) {
		uint32_t flags = player->plans[queue].desc + 16 * slot + 14;

		store16(flags, (uint16_t)((load16(flags) & ~0x8080U) | (wrap ? 0x80 : 0x8000)));
		if (++slot >= ring->size) {
			slot = 0;
			wrap ^= 1;
		}
	}
}

/* Make the next entries of the ring available, whatever is in them. */
static void offer(const struct player *player, unsigned int queue, uint16_t n)
{
	uint32_t index = player->plans[queue].avail + 2U;

	if (player->packed) {
		offer_packed(player, queue, n % (player->plans[queue].size + 2));
		return;
	}
	store16(index, (uint16_t)(load16(index) + n % (player->plans[queue].size + 2)));
}

static void step(struct scene *scene, struct input *input)
{
	uint8_t what = take8(input);
	uint16_t x = take16(input), y = take16(input);
	struct player *player = &scene->players[what >> 7];
	unsigned int queue = what >> 6 & 1;

	check_packed(player, queue);
	switch (what % 18) {
	case 0:
		start(player, queue);
		break;
	case 1:
		stop(player, queue);
		break;
	case 2:
	case 3:
		drain(player);
		break;
	case 4:
		flush(player);
		break;
	case 5:
		enqueue(player, x, y);
		break;
	case 6:
		CHECK(mv_ring_enable(player->port, queue, x & 1) == 0);
		break;
	case 7:
		CHECK(mv_ring_set_call(player->port, queue, x & 1 ? events[0] : -1) == 0);
		CHECK(mv_ring_set_err(player->port, queue, x & 2 ? events[1] : -1) == 0);
		break;
	case 8:
		move(player, queue, x);
		break;
	case 9:
		change_layout(player);
		break;
	case 10:
		unplug(player, x);
		break;
	case 11:
		mv_port_drop_first(player->port, 0);
		break;
	case 12:
		(void)mv_event_read(events[x % 2]);
		break;
	case 13:
		player->plans[queue].base = player->packed ? (int)(x % player->plans[queue].size) : x;
		break;
	case 14:
	case 15:
		offer(player, queue, x);
		break;
	default:
		store16(x, y);
	}
}

/* ---- what must hold ---- */

static void check_counters(const struct scene *scene)
{
	struct mv_stats stats[PORTS];

	for (unsigned int i = 0; i < PORTS; i++) {
		mv_port_stats(scene->players[i].port, &stats[i]);
		CHECK(stats[i].tx_frames ==
		      stats[i].routed + stats[i].punts + lost_from_guest(&stats[i]));
		CHECK(mv_port_backlog(scene->players[i].port) <= MV_BACKLOG);
	}
	/* Each frame sent on arrives, waits or is counted, in one piece at least. */
	for (unsigned int i = 0; i < PORTS; i++)
		CHECK(scene->players[i].enqueued + stats[1 - i].routed <=
		      stats[i].rx_frames + mv_port_backlog(scene->players[i].port) +
			      lost_to_guest(&stats[i]));
}

/* Nothing is written to a stopped ring, nor to any buffer that was in it. */
static void check_stopped(struct scene *scene)
{
	static uint8_t before[IMAGE_SIZE];

	for (unsigned int i = 0; i < PORTS; i++)
		for (unsigned int queue = 0; queue < MV_QUEUES; queue++)
			stop(&scene->players[i], queue);
	memcpy(before, image.bytes, IMAGE_SIZE);
	for (unsigned int i = 0; i < PORTS; i++) {
		CHECK(mv_port_enqueue(scene->players[i].port, frame, MV_ETH_SIZE) == 0);
		CHECK(mv_ring_enable(scene->players[i].port, MV_RX, true) == 0);
		drain(&scene->players[i]);
		flush(&scene->players[i]);
	}
	CHECK(memcmp(before, image.bytes, IMAGE_SIZE) == 0);
}

static void play(struct scene *scene, struct input *input)
{
	unsigned int steps = take8(input) % (MAX_STEPS + 1);
	struct input script = *input;

	/* The script is followed by the image, which has to be there first. */
	take(input, image.bytes, 5 * (size_t)steps);
	take(input, image.bytes, IMAGE_SIZE);
	for (unsigned int i = 0; i < PORTS; i++)
		for (unsigned int queue = 0; queue < MV_QUEUES; queue++)
			start(&scene->players[i], queue);
	for (unsigned int n = 0; n < steps; n++)
		step(scene, &script);
	for (unsigned int i = 0; i < PORTS; i++) {
		drain(&scene->players[i]);
		flush(&scene->players[1 - i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };
	struct scene scene = { .network = mv_network_new(1500) };

	prepare();
	CHECK(scene.network);
	for (unsigned int i = 0; i < PORTS; i++)
		take_player(&scene, i, &input);
	play(&scene, &input);
	check_counters(&scene);
	check_stopped(&scene);
	for (unsigned int i = 0; i < PORTS; i++)
		mv_port_free(scene.players[i].port);
	mv_network_free(scene.network);
	return 0;
}
