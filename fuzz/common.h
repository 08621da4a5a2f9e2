/* What the fuzz targets share. Each is a program of its own: libFuzzer, this, and the C core. */
#ifndef MVIRT_FUZZ_COMMON_H
#define MVIRT_FUZZ_COMMON_H

#include "core.h"

/* A rule that the core must keep, whatever the input is. */
#define CHECK(condition) \
	do { \
		if (!(condition)) \
			fuzz_fail(#condition, __FILE__, __LINE__); \
	} while (0)

/* Report a broken rule and end the program, which libFuzzer takes for a crash. */
__attribute__((noreturn)) void fuzz_fail(const char *rule, const char *file, int line);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is left of the input. */
struct input {
	const uint8_t *data;
	size_t size;
};

/* The next bytes of the input; zeros once it has come to its end. */
void take(struct input *input, void *into, size_t length);
uint8_t take8(struct input *input);
uint16_t take16(struct input *input);	/* little endian */

/* A file of guest memory, and where this program has mapped it to play the guest. */
struct image {
	int fd;
	uint8_t *bytes;
	size_t size;
};

struct image image_new(size_t size);

/*
 * A table of regions of an image, made once and used for all inputs. On either side of each mapping
 * there is nothing, so that one byte too far is a crash.
 */
mv_memory *map_image(const struct image *image, const struct mv_region_spec *specs, unsigned int n);

/* The only thread's, made at its first use. */
mv_worker *fuzz_worker(void);

/* An eventfd that never blocks. */
int event_new(void);

/* The prefix of a single address. */
struct mv_prefix host_prefix(enum mv_family family, const uint8_t *address);

/* ---- for the counters of a port ---- */

/* Frames that were lost on their way to the guest, and on their way from it. */
uint64_t lost_to_guest(const struct mv_stats *stats);
uint64_t lost_from_guest(const struct mv_stats *stats);

/* What mv_port_drain() says of itself holds: counts, kinds, places in the buffer, tags up to max. */
void check_drained(int next, const struct mv_drained *drained, uint32_t max_tag);

#endif
