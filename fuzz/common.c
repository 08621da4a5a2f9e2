/* What the fuzz targets share; common.h says what each function does. */
#include "common.h"	/* first: it asks for mremap */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

void fuzz_fail(const char *rule, const char *file, int line)
{
	fprintf(stderr, "%s:%d: broken rule: %s\n", file, line, rule);
	abort();
}

void take(struct input *input, void *into, size_t length)
{
	size_t there = length < input->size ? length : input->size;

	if (there > 0)
		memcpy(into, input->data, there);
	memset((uint8_t *)into + there, 0, length - there);
	input->data += there;
	input->size -= there;
}

uint8_t take8(struct input *input)
{
	uint8_t value;

	take(input, &value, sizeof(value));
	return value;
}

uint16_t take16(struct input *input)
{
	uint16_t value;

	take(input, &value, sizeof(value));
	return value;
}

struct image image_new(size_t size)
{
	struct image image = { .fd = memfd_create("mvirt-fuzz", MFD_CLOEXEC), .size = size };

	CHECK(image.fd >= 0);
	CHECK(ftruncate(image.fd, (off_t)size) == 0);
	image.bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, image.fd, 0);
	CHECK(image.bytes != MAP_FAILED);
	return image;
}

/* Move a mapping to where there is nothing on either side of it. */
static void isolate(struct mv_region *region)
{
	const size_t margin = 1 << 20, room = region->map_size + 2 * margin;
	uint8_t *wall = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *map;

	CHECK(wall != MAP_FAILED);
	map = mremap(region->map, region->map_size, region->map_size, MREMAP_MAYMOVE | MREMAP_FIXED,
		     wall + margin);
	CHECK(map == wall + margin);
	region->host = map + (region->host - region->map);
	region->map = map;
}

mv_memory *map_image(const struct image *image, const struct mv_region_spec *specs, unsigned int n)
{
	mv_memory *memory = mv_memory_new(event_new());

	CHECK(memory);
	for (unsigned int i = 0; i < n; i++) {
		CHECK(mv_memory_add(memory, &specs[i], image->fd) == 0);
		isolate(memory->regions[i]);
	}
	return memory;
}

mv_worker *fuzz_worker(void)
{
	static mv_worker *worker;

	if (!worker)
		worker = mv_worker_new();
	return worker;
}

int event_new(void)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	CHECK(fd >= 0);
	return fd;
}

struct mv_prefix host_prefix(enum mv_family family, const uint8_t *address)
{
	struct mv_prefix prefix = {
		.family = (uint8_t)family, .length = family == MV_IPV4 ? 32 : 128,
	};

	memcpy(prefix.address, address, family == MV_IPV4 ? 4 : 16);
	return prefix;
}

static bool is_on_the_way_to_the_guest(unsigned int reason)
{
	return (reason >= MV_DROP_RX_RING_DOWN && reason <= MV_DROP_RX_BUFFER_INVALID) ||
	       reason == MV_DROP_NO_MEMORY;
}

static uint64_t sum_of_drops(const struct mv_stats *stats, bool to_guest)
{
	uint64_t sum = 0;

	for (unsigned int reason = 0; reason < MV_DROP_REASONS; reason++)
		if (is_on_the_way_to_the_guest(reason) == to_guest)
			sum += stats->drops[reason];
	return sum;
}

uint64_t lost_to_guest(const struct mv_stats *stats)
{
	return sum_of_drops(stats, true);
}

/* Frames for services that they have no time for are counted as punts as well. */
uint64_t lost_from_guest(const struct mv_stats *stats)
{
	return sum_of_drops(stats, false) - stats->drops[MV_DROP_PUNT_LIMIT];
}

void check_drained(int next, const struct mv_drained *drained, uint32_t max_tag)
{
	CHECK(next == MV_NEXT_KICK || next == MV_NEXT_CALL_AGAIN || next == MV_NEXT_NOTHING);
	CHECK(drained->n_punts <= MV_PUNT_FRAMES && drained->n_woken <= MV_MAX_WOKEN);
	for (unsigned int i = 0; i < drained->n_punts; i++) {
		const struct mv_punt *punt = &drained->punts[i];

		CHECK(punt->kind <= MV_PUNT_ICMP_ERROR && punt->error <= MV_ICMP_TOO_BIG);
		CHECK(punt->length >= MV_ETH_SIZE && punt->length <= MV_MAX_FRAME);
		CHECK(punt->offset <= MV_PUNT_BYTES && punt->length <= MV_PUNT_BYTES - punt->offset);
	}
	for (unsigned int i = 0; i < drained->n_woken; i++) {
		CHECK(drained->woken[i].tag >= 1 && drained->woken[i].tag <= max_tag);
		CHECK(drained->woken[i].pair < MV_MAX_PAIRS);
	}
}
