/*
 * Guest memory: regions that a frontend shares, and the two kinds of address in which it speaks.
 *
 * A table is an array of pointers to regions. Tables are built beside one another and share their
 * regions, so a change is a new table that replaces the old one in a single step; a region is
 * unmapped with the last table that holds it.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>

/*
 * Address space that one table may take. A frontend can offer sparse files of any size; without a
 * bound one of them could use up the process's 128 TiB and leave nothing for the other NICs.
 */
static const uint64_t MAX_TOTAL = UINT64_C(4) << 40;

/* Bytes of a mapping whose pages take some milliseconds to free. */
enum { UNMAP_ASIDE = 32 << 20 };

mv_memory *mv_memory_new(int fault_fd)
{
	mv_memory *memory = calloc(1, sizeof(*memory));

	if (memory)
		memory->fault_fd = fault_fd;
	return memory;
}

mv_memory *mv_memory_copy(const mv_memory *memory)
{
	mv_memory *copy = malloc(sizeof(*copy));

	if (!copy)
		return NULL;
	*copy = *memory;
	for (unsigned int i = 0; i < copy->n_regions; i++)
		copy->regions[i]->tables++;
	return copy;
}

/* ---- unmapping ---- */

/*
 * Where this is the last mapping of a file, its pages are freed with it: 0.1 s and more for each GiB,
 * for which nobody else should have to wait. Nor for another thread's mmap() (mv_region_map), by which
 * an munmap() is held up. So there is a thread for that, made when it is needed first, for good.
 */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct mv_region *first;
	bool started;
	bool handles_fork;
	unsigned int users;	/* of mv_unmap_aside_begin(); atomic */
} aside = { .lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER };

/* Nobody uses it any more, and its addresses may be mapped anew once they are free. */
static void region_unmap(struct mv_region *region)
{
	if (region->map) {
		if (region->watched)
			mv_sigbus_unwatch(region->watch);
		munmap(region->map, region->map_size);
	}
	free(region);
}

static void *unmap_for_others(void *argument)
{
	(void)argument;
	for (;;) {
		struct mv_region *region;

		pthread_mutex_lock(&aside.lock);
		while (!aside.first)
			pthread_cond_wait(&aside.work, &aside.lock);
		region = aside.first;
		aside.first = region->next;
		pthread_mutex_unlock(&aside.lock);
		region_unmap(region);
	}
	return NULL;
}

/* The thread is the parent's, and so are the regions, whose mappings the child only shares. */
static void aside_after_fork(void)
{
	pthread_mutex_init(&aside.lock, NULL);
	pthread_cond_init(&aside.work, NULL);
	aside.first = NULL;
	aside.started = false;
	aside.users = 0;
}

/* With the lock: have the thread, or false. */
static bool aside_start(void)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;

	if (aside.started)
		return true;
	if (!aside.handles_fork)
		aside.handles_fork = pthread_atfork(NULL, NULL, aside_after_fork) == 0;
	/* Signals are for the threads that know of them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	aside.started = pthread_create(&thread, &attributes, unmap_for_others, NULL) == 0;
	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return aside.started;
}

static bool unmap_aside(struct mv_region *region)
{
	bool started;

	pthread_mutex_lock(&aside.lock);
	started = aside_start();
	if (started) {
		region->next = aside.first;
		aside.first = region;
		pthread_cond_signal(&aside.work);
	}
	pthread_mutex_unlock(&aside.lock);
	return started;
}

void mv_unmap_aside_begin(void)
{
	/* A thread needs a stack, which could not be mapped later. */
	pthread_mutex_lock(&aside.lock);
	(void)aside_start();
	pthread_mutex_unlock(&aside.lock);
	__atomic_fetch_add(&aside.users, 1, __ATOMIC_SEQ_CST);
}

void mv_unmap_aside_end(void)
{
	__atomic_fetch_sub(&aside.users, 1, __ATOMIC_SEQ_CST);
}

static bool unmapping_is_slow(const struct mv_region *region)
{
	return region->map_size >= UNMAP_ASIDE || __atomic_load_n(&aside.users, __ATOMIC_SEQ_CST) > 0;
}

void mv_region_free(mv_region *region)
{
	if (region && (!unmapping_is_slow(region) || !unmap_aside(region)))
		region_unmap(region);
}

static void region_release(struct mv_region *region)
{
	if (--region->tables == 0)
		mv_region_free(region);
}

void mv_memory_free(mv_memory *memory)
{
	if (!memory)
		return;
	for (unsigned int i = 0; i < memory->n_regions; i++)
		region_release(memory->regions[i]);
	free(memory);
}

static bool ranges_overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b + b_size && b < a + a_size;
}

/* Whether the numbers make sense by themselves: nothing wraps, what is mapped is whole pages. */
static bool spec_is_sane(const struct mv_region_spec *spec)
{
	uint64_t end;

	return spec->size > 0 && spec->size % MV_PAGE == 0 && spec->mmap_offset % MV_PAGE == 0 &&
	       !__builtin_add_overflow(spec->guest_addr, spec->size, &end) &&
	       !__builtin_add_overflow(spec->user_addr, spec->size, &end) &&
	       !__builtin_add_overflow(spec->mmap_offset, spec->size, &end) && end <= INT64_MAX;
}

static int spec_fits_table(const mv_memory *memory, const struct mv_region_spec *spec)
{
	uint64_t total = 0;

	for (unsigned int i = 0; i < memory->n_regions; i++) {
		const struct mv_region *region = memory->regions[i];

		total += region->size;
		if (ranges_overlap(region->guest_addr, region->size, spec->guest_addr, spec->size) ||
		    ranges_overlap(region->user_addr, region->size, spec->user_addr, spec->size))
			return -EINVAL;
	}
	if (memory->n_regions == MV_MAX_REGIONS || spec->size > MAX_TOTAL - total)
		return -ENOSPC;
	return 0;
}

/* The size of the pages that fd's file is made of: what mmap() wants offset and length in. */
static uint64_t file_page_size(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
		return (uint64_t)fs.f_bsize;
	return MV_PAGE;
}

static int file_check(const struct mv_region_spec *spec, int fd, uint64_t page)
{
	struct stat st;

	/* Only tmpfs and hugetlbfs know seals: no page fault of theirs waits for somebody else. */
	if (fcntl(fd, F_GET_SEALS) < 0)
		return errno == EBADF ? -EBADF : -ENODEV;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -ENODEV;
	if (st.st_size < 0 || (uint64_t)st.st_size < spec->mmap_offset + spec->size ||
	    spec->size % page)
		return -EINVAL;
	return 0;
}

/* ---- mapping ---- */

int mv_region_new(mv_region **result, const mv_memory *memory, const struct mv_region_spec *spec,
		  int fd)
{
	uint64_t page = file_page_size(fd);
	struct mv_region *region;
	int r;

	if (!spec_is_sane(spec))
		return -EINVAL;
	r = spec_fits_table(memory, spec);
	if (r == 0)
		r = file_check(spec, fd, page);
	if (r < 0)
		return r;
	region = calloc(1, sizeof(*region));
	if (!region)
		return -ENOMEM;
	region->guest_addr = spec->guest_addr;
	region->user_addr = spec->user_addr;
	region->size = spec->size;
	region->mmap_offset = spec->mmap_offset;
	region->page = page;
	*result = region;
	return 0;
}

bool mv_region_may_wait(const mv_region *region)
{
	return region->page != MV_PAGE;
}

/* Shared and writable. On hugetlbfs the mapping may begin before the region. */
int mv_region_map(mv_region *region, int fd)
{
	uint64_t page = region->page, lead = region->mmap_offset % page;
	void *map;

	/*
	 * The file is not sealed against shrinking: for that the kernel waits for whoever is at work on
	 * the file, as long as that takes. Who shrinks it loses the memory (sigbus.c).
	 */
	region->map_size = (lead + region->size + page - 1) / page * page;
	map = mmap(NULL, region->map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
		   (off_t)(region->mmap_offset - lead));
	if (map == MAP_FAILED)
		return -errno;
	region->map = map;
	region->host = region->map + lead;
	/* Guest memory in a core dump of the daemon would be a leak, and huge. */
	(void)madvise(region->map, region->map_size, MADV_DONTDUMP);
	return 0;
}

int mv_memory_adopt(mv_memory *memory, mv_region *region)
{
	const struct mv_region_spec spec = {
		.guest_addr = region->guest_addr, .size = region->size, .user_addr = region->user_addr,
	};
	int r = region->map ? spec_fits_table(memory, &spec) : -EINVAL;

	if (r < 0)
		return r;
	r = mv_sigbus_watch(region->map, region->map_size, region->page, memory->fault_fd);
	if (r < 0)
		return r;
	region->watch = (unsigned int)r;
	region->watched = true;
	region->tables = 1;
	memory->regions[memory->n_regions++] = region;
	return 0;
}

int mv_memory_add(mv_memory *memory, const struct mv_region_spec *spec, int fd)
{
	mv_region *region;
	int r = mv_region_new(&region, memory, spec, fd);

	if (r < 0)
		return r;
	r = mv_region_map(region, fd);
	if (r == 0)
		r = mv_memory_adopt(memory, region);
	if (r < 0)
		mv_region_free(region);
	return r;
}

int mv_memory_remove(mv_memory *memory, const struct mv_region_spec *spec)
{
	for (unsigned int i = 0; i < memory->n_regions; i++) {
		struct mv_region *region = memory->regions[i];

		if (region->guest_addr != spec->guest_addr || region->user_addr != spec->user_addr ||
		    region->size != spec->size)
			continue;
		memory->n_regions--;
		memmove(&memory->regions[i], &memory->regions[i + 1],
			(memory->n_regions - i) * sizeof(memory->regions[0]));
		region_release(region);
		return 0;
	}
	return -ENOENT;
}

uint8_t *mv_memory_user(const mv_memory *memory, uint64_t addr, uint64_t length)
{
	for (unsigned int i = 0; i < memory->n_regions; i++) {
		const struct mv_region *region = memory->regions[i];
		uint64_t offset = addr - region->user_addr;

		if (offset < region->size)
			return length <= region->size - offset ? region->host + offset : NULL;
	}
	return NULL;
}

int mv_memory_read(const mv_memory *memory, uint64_t addr, void *into, uint32_t length)
{
	uint8_t *to = into;

	while (length > 0) {
		uint32_t run;
		const uint8_t *from = mv_memory_guest(memory, addr, length, &run);

		if (!from)
			return -EFAULT;
		memcpy(to, from, run);
		to += run;
		addr += run;
		length -= run;
	}
	return 0;
}
