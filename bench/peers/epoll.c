/*
 * The least that a backend which sleeps can be: `epoll EAL-OPTIONS -- SOCKET SOCKET`.
 *
 * One thread waits in epoll for the kicks of two vhost-user devices and passes frames on from one to
 * the other by DPDK's librte_vhost, looking at nothing. It says "ready" when it listens.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_mbuf.h>
#include <rte_vhost.h>

enum {
	BURST = 32,
	MBUFS = 8192,
	RX = 0,			/* from the guest's view */
	TX = 1,
	NOBODY = -1,
};

static struct device {
	const char *path;
	_Atomic int vid;	/* NOBODY: no frontend */
} devices[2];

static int changed;		/* eventfd: a frontend has come or gone */
static struct rte_mempool *pool;

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

	if (!device)
		return -1;
	atomic_store(&device->vid, vid);
	return eventfd_write(changed, 1);
}

/* The memory is gone when this returns; the client of the benchmark is quiet by then. */
static void go(int vid)
{
	struct device *device = device_of(vid);

	if (device)
		atomic_store(&device->vid, NOBODY);
}

static const struct rte_vhost_device_ops events = { .new_device = come, .destroy_device = go };

static void pass_on(struct device *from, struct device *to)
{
	struct rte_mbuf *frames[BURST];
	int source = atomic_load(&from->vid), target = atomic_load(&to->vid);
	uint16_t count;

	while (source != NOBODY && target != NOBODY &&
	       (count = rte_vhost_dequeue_burst(source, TX, pool, frames, BURST))) {
		rte_vhost_enqueue_burst(target, RX, frames, count);
		rte_pktmbuf_free_bulk(frames, count);
	}
}

/* Wait for the kicks of those that are there. A descriptor of one that is gone is gone from epoll. */
static void watch(int epoll)
{
	for (uint64_t i = 0; i < 2; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u64 = i };
		struct rte_vhost_vring ring;
		int vid = atomic_load(&devices[i].vid);

		if (vid == NOBODY || rte_vhost_get_vhost_vring(vid, TX, &ring))
			continue;
		if (!epoll_ctl(epoll, EPOLL_CTL_ADD, ring.kickfd, &event))
			rte_vhost_enable_guest_notification(vid, TX, 1);
	}
}

static void serve(int epoll)
{
	struct epoll_event event;
	eventfd_t value;

	while (epoll_wait(epoll, &event, 1, -1) >= 0 || errno == EINTR) {
		struct rte_vhost_vring ring;
		uint64_t i = event.data.u64;
		int vid;

		if (i > 1) {
			eventfd_read(changed, &value);
			watch(epoll);
			continue;
		}
		vid = atomic_load(&devices[i].vid);
		if (vid == NOBODY || rte_vhost_get_vhost_vring(vid, TX, &ring))
			continue;
		eventfd_read(ring.kickfd, &value);
		pass_on(&devices[i], &devices[!i]);
	}
}

static int listen_on(struct device *device, const char *path)
{
	device->path = path;
	atomic_store(&device->vid, NOBODY);
	if (rte_vhost_driver_register(path, 0) || rte_vhost_driver_callback_register(path, &events))
		return -1;
	return rte_vhost_driver_start(path);
}

int main(int count, char **arguments)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 2 };
	int epoll = epoll_create1(EPOLL_CLOEXEC), used = rte_eal_init(count, arguments);

	if (used < 0 || epoll < 0 || count - used != 3)
		return EXIT_FAILURE;
	arguments += used + 1;
	changed = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	pool = rte_pktmbuf_pool_create("frames", MBUFS, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
				       SOCKET_ID_ANY);
	if (changed < 0 || !pool || epoll_ctl(epoll, EPOLL_CTL_ADD, changed, &event) ||
	    listen_on(&devices[0], arguments[0]) || listen_on(&devices[1], arguments[1]))
		return EXIT_FAILURE;
	puts("ready");
	fflush(stdout);
	serve(epoll);
	return EXIT_FAILURE;
}
