/*
 * Threads that drain, flush and control the same ports at once, for the thread sanitizer to watch.
 *
 * Six guests in two networks, with two queue pairs each, send each other numbered packets. Three threads drain and flush all
 * ports, each whichever it likes, and two poll those that control gives them; one stops and starts
 * rings, exchanges memory tables and call descriptors, changes routes, takes a guest's memory away under
 * it, makes rings hot and cold, has frames captured or not, and lets a port come and go; one takes what
 * was captured; one waits for kicks, as the two that poll do besides; one plays the drivers of all other
 * guests.
 * The second pairs are not there in the beginning: they are made when control starts their rings. In the
 * end every packet has arrived, once and in its order, or was counted.
 *
 * Usage: races SECONDS. Prints what was done; exits with 1 when something was lost.
 */
#define _GNU_SOURCE

#include "mvirt.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
	RX = 0,
	TX = 1,
	PAIRS = 2,
	QUEUES = 2 * PAIRS,	/* of pair i, 2i is RX and 2i + 1 is TX */
	FLOWS = 4,		/* source ports of each sender */
	GUESTS = 6,
	PER_NETWORK = 3,
	NETWORKS = GUESTS / PER_NETWORK,
	VISITOR = PER_NETWORK,	/* host number of the port that comes and goes, in the first network */
	DRAINERS = 3,
	POLLERS = 2,
	WATCHER = DRAINERS + POLLERS,	/* its thread, ... */
	TAKER,				/* ... who takes captured frames, ... */
	CONTROL,			/* ... that of control, ... */
	DRIVER,				/* ... and the drivers' */
	THREADS,

	SIZE = 256,		/* of each ring */
	BUFFER = 256,
	HEADER = 12,		/* virtio_net_hdr */
	FRAME = 14 + 20 + 8 + 8,
	MEMORY = 1 << 20,
	RING_ROOM = 16384,	/* bytes for the parts of one ring */
	BUFFERS_AT = QUEUES * RING_ROOM,

	/* Of this many, one is for an address that nobody has. */
	LOST_ONE_IN = 64,
};

#define VERSION_1 (UINT64_C(1) << 32)

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

/* One virtqueue, the driver's side; entry i is always buffer i. */
struct queue {
	struct desc *desc;
	uint16_t *avail;
	uint8_t *used;
	uint16_t next_avail;
	uint16_t next_used;
};

struct guest {
	unsigned int network;
	unsigned int host;	/* its number in the network */
	int fd;
	uint8_t *memory;	/* the driver's mapping */
	struct queue queues[QUEUES];
	/* By pair and receiver. */
	uint32_t sent[PAIRS][PER_NETWORK];
	/* By pair, and pair and number of the sender: the number that must come at least. */
	uint32_t next[PAIRS][PAIRS][PER_NETWORK];
	uint64_t received;
	mv_memory *table;
	mv_port *port;
	int call_fd;
	mv_hot *hot;		/* while a poller has its TX ring */
	int hot_fd;
	int kick_fd;
	mv_watch *watch;	/* of its TX ring */
};

static struct guest guests[GUESTS + 1];	/* the last one loses its memory again and again */
static struct guest *const loser = &guests[GUESTS];
static int loser_fault_fd;
static unsigned long n_faults;
static mv_network *networks[NETWORKS];
static int fault_fd;
static atomic_bool stopping;
static atomic_ulong n_drains, n_controls;
static mv_poller *pollers[POLLERS];
static mv_watcher *watcher;
static int watcher_fd;
static mv_capture *capture;
static int capture_fd;
static bool tapped[GUESTS];
static unsigned int n_interfaces;
static unsigned long n_captured;
static unsigned long n_takeovers, n_left, n_given_back;

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "races: %s\n", what);
	exit(1);
}

static uint32_t next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* ---- the drivers ---- */

static uint64_t buffer_at(unsigned int queue, unsigned int entry)
{
	return BUFFERS_AT + (uint64_t)(queue * SIZE + entry) * BUFFER;
}

static struct mv_ring_addr ring_at(unsigned int queue)
{
	uint64_t base = (uint64_t)queue * RING_ROOM;

	return (struct mv_ring_addr){ .desc = base, .avail = base + 8192, .used = base + 12288 };
}

static void queue_begin(struct guest *guest, unsigned int number)
{
	struct queue *queue = &guest->queues[number];
	struct mv_ring_addr at = ring_at(number);

	queue->desc = (struct desc *)(void *)(guest->memory + at.desc);
	queue->avail = (uint16_t *)(void *)(guest->memory + at.avail);
	queue->used = guest->memory + at.used;
	for (unsigned int i = 0; i < SIZE; i++) {
		queue->desc[i] = (struct desc){
			.addr = buffer_at(number, i), .len = number % 2 == TX ? HEADER + FRAME : BUFFER,
			.flags = number % 2 == TX ? 0 : 2,
		};
		queue->avail[2 + i] = (uint16_t)i;
	}
}

/* Entries are used in their order (this device completes in order), so an index is all there is. */
static void publish(struct queue *queue, uint16_t n)
{
	queue->next_avail = (uint16_t)(queue->next_avail + n);
	__atomic_store_n(&queue->avail[1], queue->next_avail, __ATOMIC_RELEASE);
}

static uint16_t used_entries(struct queue *queue)
{
	uint16_t idx = __atomic_load_n((uint16_t *)(void *)(queue->used + 2), __ATOMIC_ACQUIRE);

	return (uint16_t)(idx - queue->next_used);
}

static void put16(uint8_t *p, unsigned int value)
{
	p[0] = (uint8_t)(value >> 8);
	p[1] = (uint8_t)value;
}

static void fill_frame(uint8_t *frame, const struct guest *from, unsigned int pair, unsigned int to,
		       uint32_t number)
{
	uint8_t *ip = frame + 14;
	uint32_t sum = 0;

	memset(frame, 0, FRAME);
	memcpy(frame, "\2\0\0\0\0\1", 6);
	memcpy(frame + 6, "\x52\x54\0\0", 4);
	frame[10] = (uint8_t)from->network;
	frame[11] = (uint8_t)from->host;
	put16(frame + 12, 0x0800);
	ip[0] = 0x45;
	put16(ip + 2, FRAME - 14);
	ip[8] = 64;
	ip[9] = 17;
	memcpy(ip + 12, "\12\0\0", 3);
	ip[15] = (uint8_t)(from->host + 1);
	memcpy(ip + 16, "\12\0\0", 3);
	ip[19] = (uint8_t)(to + 1);
	for (unsigned int i = 0; i < 20; i += 2)
		sum += (uint32_t)ip[i] << 8 | ip[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	put16(ip + 10, ~(sum + (sum >> 16)) & 0xffff);
	put16(ip + 20, number % FLOWS);
	put16(ip + 24, 16);
	ip[28] = (uint8_t)from->network;
	ip[29] = (uint8_t)from->host;
	ip[30] = (uint8_t)pair;
	memcpy(ip + 32, &number, sizeof(number));
}

/* Send a few packets, each to a guest of the network, to the visitor or to nobody. */
static void send_some(struct guest *guest, unsigned int pair, uint32_t *random)
{
	unsigned int number = 2 * pair + TX;
	struct queue *queue = &guest->queues[number];
	uint16_t n = 0;

	queue->next_used = (uint16_t)(queue->next_used + used_entries(queue));
	while ((uint16_t)(queue->next_avail + n - queue->next_used) < SIZE && n < 32) {
		unsigned int slot = (uint16_t)(queue->next_avail + n) % SIZE;
		unsigned int to = next_random(random) % (PER_NETWORK + 1);
		uint8_t *buffer = guest->memory + buffer_at(number, slot);

		if (to == guest->host)
			to = (to + 1) % PER_NETWORK;
		if (next_random(random) % LOST_ONE_IN == 0)
			to = 200;
		memset(buffer, 0, HEADER);
		fill_frame(buffer + HEADER, guest, pair, to,
			   to < PER_NETWORK ? guest->sent[pair][to]++ : 0);
		n++;
	}
	publish(queue, n);
}

static void receive_all(struct guest *guest, unsigned int pair)
{
	unsigned int rx = 2 * pair + RX;
	struct queue *queue = &guest->queues[rx];
	uint16_t n = used_entries(queue);

	for (uint16_t i = 0; i < n; i++) {
		unsigned int slot = (uint16_t)(queue->next_used + i) % SIZE;
		struct used_elem elem;
		const uint8_t *ip;
		uint32_t number, *next;

		memcpy(&elem, queue->used + 4 + sizeof(elem) * slot, sizeof(elem));
		check(elem.id == slot, "buffers came back out of order");
		check(elem.len == HEADER + FRAME, "a frame of another length");
		ip = guest->memory + buffer_at(rx, slot) + HEADER + 14;
		check(ip[28] == guest->network, "a packet of another network");
		check(ip[29] < PER_NETWORK && ip[30] < PAIRS && ip[19] == guest->host + 1, "a packet for somebody else");
		memcpy(&number, ip + 32, sizeof(number));
		next = &guest->next[pair][ip[30]][ip[29]];
		check(number >= *next, "a packet came twice or late");
		*next = number + 1;
		guest->received++;
	}
	queue->next_used = (uint16_t)(queue->next_used + n);
	publish(queue, n);
}

static void kick(const struct guest *guest)
{
	static const uint64_t one = 1;

	check(write(guest->kick_fd, &one, sizeof(one)) == sizeof(one), "cannot kick");
}

static void *drive(void *unused)
{
	uint32_t random = 1;

	(void)unused;
	while (!atomic_load(&stopping)) {
		for (unsigned int i = 0; i < PAIRS * GUESTS; i++) {
			send_some(&guests[i / PAIRS], i % PAIRS, &random);
			kick(&guests[i / PAIRS]);
			receive_all(&guests[i / PAIRS], i % PAIRS);
		}
	}
	return NULL;
}

/* ---- those who move packets ---- */

struct drainer {
	mv_worker *worker;
	uint8_t *buffer;
	struct mv_drained drained;
};

static void drainer_begin(struct drainer *drainer)
{
	drainer->worker = mv_worker_new();
	drainer->buffer = malloc(MV_PUNT_BYTES);
	check(drainer->worker && drainer->buffer, "no memory");
}

static void drainer_end(struct drainer *drainer)
{
	mv_worker_free(drainer->worker);
	free(drainer->buffer);
}

static void *drain(void *argument)
{
	uint32_t random = (uint32_t)(uintptr_t)argument;
	struct drainer drainer;
	struct mv_stats stats;

	drainer_begin(&drainer);
	while (!atomic_load(&stopping)) {
		mv_port *port = guests[next_random(&random) % (GUESTS + 1)].port;
		unsigned int pair = next_random(&random) % PAIRS;

		switch (next_random(&random) % 8) {
		case 0:
			mv_port_flush(port, pair);
			break;
		case 1:
			mv_port_drop_first(port, pair);
			break;
		case 2:
			mv_port_stats(port, &stats);
			(void)mv_port_backlog(port);
			(void)mv_ring_broken(port, 2 * pair + RX);
			break;
		default:
			mv_port_drain(drainer.worker, port, pair, 0, drainer.buffer,
				      &drainer.drained);
			atomic_fetch_add(&n_drains, 1);
		}
	}
	drainer_end(&drainer);
	return NULL;
}

static void *poll_rings(void *poller)
{
	mv_poller_run(poller);
	return NULL;
}

static void *watch_rings(void *unused)
{
	(void)unused;
	mv_watcher_run(watcher);
	return NULL;
}

/* ---- who takes captured frames ---- */

/* The blocks of a piece are whole, and their interfaces are there. */
static void check_blocks(const uint8_t *piece, size_t length)
{
	uint32_t total, last;

	for (size_t at = 0; at < length; at += total, n_captured++) {
		check(length - at >= 32, "half a block");
		memcpy(&total, piece + at + 4, sizeof(total));
		check(total >= 32 && total % 4 == 0 && total <= length - at, "a block's length");
		memcpy(&last, piece + at + total - 4, sizeof(last));
		check(last == total, "a block's end");
	}
}

static void take_captured(void)
{
	static uint8_t piece[MV_PUNT_BYTES];
	size_t n;

	while ((n = mv_capture_take(capture, piece, sizeof(piece))) > 0)
		check_blocks(piece, n);
}

/* Now and then so late that there is no room for what comes. */
static void *take(void *unused)
{
	uint32_t random = 99;
	uint64_t count;

	(void)unused;
	while (!atomic_load(&stopping)) {
		take_captured();
		if (next_random(&random) % 8 == 0)
			usleep(300000);
		else if (read(capture_fd, &count, sizeof(count)) < 0)
			usleep(1000);
	}
	return NULL;
}

/* ---- control ---- */

/* What the poller has left to do; the drainers flush all ports anyway. */
static void take_what_is_left(struct guest *guest)
{
	const struct mv_drained *drained;
	struct mv_woken woken[MV_MAX_WOKEN];
	const uint8_t *buffer;

	n_left += mv_hot_take_woken(guest->hot, woken);
	while ((drained = mv_hot_take(guest->hot, &buffer)) != NULL) {
		n_left += drained->n_punts + drained->n_woken;
		mv_hot_done(guest->hot);
	}
}

static void cool_down(struct guest *guest)
{
	if (!guest->hot)
		return;
	mv_hot_remove(guest->hot);
	check(mv_hot_released(guest->hot), "a ring was removed and not released");
	take_what_is_left(guest);
	mv_hot_free(guest->hot);
	guest->hot = NULL;
}

static void heat_up(struct guest *guest, unsigned int pair, mv_poller *poller)
{
	if (guest->hot)
		take_what_is_left(guest);
	if (guest->hot && !mv_hot_released(guest->hot)) {
		mv_hot_move(guest->hot, poller);
		return;
	}
	cool_down(guest);
	guest->hot = mv_poller_add(poller, guest->port, pair, 0, 0, guest->hot_fd);
	check(guest->hot, "no memory");
	n_takeovers++;
}

static void watch(struct guest *guest, uint32_t *random)
{
	struct mv_watched watched;
	int64_t keys[GUESTS];
	unsigned int n = mv_watcher_returned(watcher, keys, GUESTS);

	for (unsigned int i = 0; i < n; i++)
		check(keys[i] >= 0 && keys[i] <= GUESTS, "a ring that there is not");
	mv_watch_end(guest->watch, &watched);
	if (watched.drained)
		n_left += watched.drained->n_punts + watched.drained->n_woken;
	n_given_back += watched.given_back;
	if (next_random(random) % 8 == 0) {
		mv_watch_free(guest->watch);
		guest->watch = mv_watch_new(watcher, guest->port, 0, guest - guests, 0);
		check(guest->watch, "no memory");
	}
	check(mv_watch_begin(guest->watch, guest->kick_fd, 16, 1000000) == 0, "cannot watch");
}

static mv_memory *map_table(const struct guest *guest)
{
	struct mv_region_spec spec = { .guest_addr = 0, .size = MEMORY, .user_addr = 0 };
	mv_memory *table = mv_memory_new(guest == loser ? loser_fault_fd : fault_fd);

	check(table && mv_memory_add(table, &spec, guest->fd) == 0, "cannot map memory");
	return table;
}

static void exchange_memory(struct guest *guest, bool share)
{
	mv_memory *table = share ? mv_memory_copy(guest->table) : map_table(guest);

	check(table && mv_port_set_memory(guest->port, table) == 0, "cannot exchange memory");
	mv_memory_free(guest->table);
	guest->table = table;
}

static void exchange_call(struct guest *guest)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	check(fd >= 0 && mv_ring_set_call(guest->port, RX, fd) == 0, "cannot set call");
	close(guest->call_fd);
	guest->call_fd = fd;
}

static void restart(struct guest *guest, unsigned int queue)
{
	struct mv_ring_addr at = ring_at(queue);
	int64_t base = mv_ring_stop(guest->port, queue);

	check(mv_ring_start(guest->port, queue, SIZE, &at, base) == 0, "cannot start a ring");
}

static void set_routes(mv_port *port, unsigned int host, bool any)
{
	struct mv_prefix prefixes[2] = {
		{ .length = 32, .address = { 10, 0, 0, (uint8_t)(host + 1) } },
		{ .length = 24, .address = { 10, 0, (uint8_t)(host + 1), 0 } },
	};

	check(mv_port_set_routes(port, prefixes, any ? 2 : 1) == 0, "cannot set routes");
}

static void visit(void)
{
	static const uint8_t mac[6] = { 0x52, 0x54, 0, 0, 0, VISITOR };
	mv_port *port = mv_port_new(networks[0], mac, VISITOR);

	check(port, "no memory");
	set_routes(port, VISITOR, false);
	usleep(100);
	check(mv_port_set_routes(port, NULL, 0) == 0, "cannot take routes away");
	mv_port_free(port);
}

/* The file is gone until a drain has met it; then the frontend comes back with another one. */
static void lose_memory(void)
{
	uint64_t count;

	check(ftruncate(loser->fd, 0) == 0, "cannot shrink a file");
	while (!atomic_load(&stopping) && read(loser_fault_fd, &count, sizeof(count)) < 0)
		sched_yield();
	n_faults++;
	check(ftruncate(loser->fd, MEMORY) == 0, "cannot grow a file");
	exchange_memory(loser, false);
}

static void capture_or_not(unsigned int i)
{
	if (tapped[i])
		mv_capture_untap(capture, guests[i].port);
	else
		check(mv_capture_tap(capture, guests[i].port) == (int)n_interfaces++, "an interface");
	tapped[i] = !tapped[i];
}

static void *control(void *unused)
{
	static const struct mv_prefix subnet = { .length = 16, .address = { 192, 168 } };
	uint32_t random = 77;

	(void)unused;
	while (!atomic_load(&stopping)) {
		struct guest *guest = &guests[next_random(&random) % GUESTS];
		unsigned int queue;

		switch (next_random(&random) % 14) {
		case 0:
			exchange_memory(guest, true);
			break;
		case 1:
			exchange_memory(guest, false);
			break;
		case 2:
			exchange_call(guest);
			break;
		case 3:
			restart(guest, next_random(&random) % QUEUES);
			break;
		case 4:
			set_routes(guest->port, guest->host, next_random(&random) % 2);
			break;
		case 5:
			queue = 2 * (next_random(&random) % PAIRS) + RX;
			mv_ring_enable(guest->port, queue, false);
			mv_ring_enable(guest->port, queue, true);
			break;
		case 6:
			mv_network_set_subnets(networks[guest->network], &subnet,
					       next_random(&random) % 2);
			mv_port_set_mtu(guest->port, 1500 - next_random(&random) % 2);
			break;
		case 7:
			visit();
			break;
		case 8:
			lose_memory();
			break;
		case 9:
			heat_up(&guests[next_random(&random) % (GUESTS + 1)],
				next_random(&random) % PAIRS, pollers[next_random(&random) % POLLERS]);
			break;
		case 10:
			cool_down(&guests[next_random(&random) % (GUESTS + 1)]);
			break;
		case 11:
			watch(&guests[next_random(&random) % (GUESTS + 1)], &random);
			break;
		case 12:
			capture_or_not(next_random(&random) % GUESTS);
			break;
		case 13:
			mv_poller_help(pollers[next_random(&random) % POLLERS],
				       next_random(&random) % 4 ? watcher : NULL);
			break;
		}
		atomic_fetch_add(&n_controls, 1);
		usleep(next_random(&random) % 200);
	}
	for (unsigned int i = 0; i <= GUESTS; i++) {
		cool_down(&guests[i]);
		mv_watch_free(guests[i].watch);
	}
	for (unsigned int i = 0; i < GUESTS; i++)
		if (tapped[i])
			capture_or_not(i);
	return NULL;
}

/* ---- the whole ---- */

/* What it takes to hand over its TX ring. */
static void watch_begin(struct guest *guest)
{
	guest->hot_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	guest->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	guest->watch = mv_watch_new(watcher, guest->port, 0, guest - guests, 0);
	check(guest->hot_fd >= 0 && guest->kick_fd >= 0 && guest->watch, "no watch");
}

static void guest_begin(unsigned int i)
{
	struct guest *guest = &guests[i];
	uint8_t mac[6] = { 0x52, 0x54, 0, 0 };

	guest->network = i / PER_NETWORK;
	guest->host = i % PER_NETWORK;
	mac[4] = (uint8_t)guest->network;
	mac[5] = (uint8_t)guest->host;
	guest->fd = memfd_create("guest", MFD_CLOEXEC);
	check(guest->fd >= 0 && ftruncate(guest->fd, MEMORY) == 0, "no memory file");
	guest->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, guest->fd, 0);
	check(guest->memory != MAP_FAILED, "cannot map a memory file");
	guest->port = mv_port_new(networks[guest->network], mac, i);
	check(guest->port && mv_port_set_features(guest->port, VERSION_1) == 0, "no port");
	guest->table = map_table(guest);
	check(mv_port_set_memory(guest->port, guest->table) == 0, "cannot set memory");
	set_routes(guest->port, guest->host, false);
	guest->call_fd = -1;
	exchange_call(guest);
	watch_begin(guest);
	for (unsigned int queue = 0; queue < QUEUES; queue++) {
		queue_begin(guest, queue);
		if (queue % 2 == RX)
			publish(&guest->queues[queue], SIZE);
		mv_ring_enable(guest->port, queue, true);
		if (queue < 2)
			restart(guest, queue);
	}
}

/* A guest without a driver, whose rings are in its memory all the same. */
static void loser_begin(void)
{
	static const uint8_t mac[6] = { 0x52, 0x54, 0, 0, 1, VISITOR };

	loser->fd = memfd_create("loser", MFD_CLOEXEC);
	check(loser->fd >= 0 && ftruncate(loser->fd, MEMORY) == 0, "no memory file");
	loser->port = mv_port_new(networks[1], mac, GUESTS);
	check(loser->port, "no port");
	loser->table = map_table(loser);
	check(mv_port_set_memory(loser->port, loser->table) == 0, "cannot set memory");
	loser->call_fd = -1;
	watch_begin(loser);
	for (unsigned int queue = 0; queue < 2; queue++) {
		struct mv_ring_addr at = ring_at(queue);

		check(mv_ring_start(loser->port, queue, SIZE, &at, 0) == 0, "cannot start a ring");
		mv_ring_enable(loser->port, queue, true);
	}
}

static void guest_end(struct guest *guest)
{
	mv_port_free(guest->port);
	mv_memory_free(guest->table);
	if (guest->memory)
		munmap(guest->memory, MEMORY);
	if (guest->call_fd >= 0)
		close(guest->call_fd);
	close(guest->hot_fd);
	close(guest->kick_fd);
	close(guest->fd);
}

/* Move what is left, now that all others are gone, also where control has never started a ring. */
static void finish(void)
{
	struct drainer drainer;

	drainer_begin(&drainer);
	for (unsigned int i = 0; i < GUESTS * QUEUES; i++)
		restart(&guests[i / QUEUES], i % QUEUES);
	for (unsigned int round = 0; round < 4 * SIZE; round++) {
		for (unsigned int i = 0; i < GUESTS * PAIRS; i++) {
			struct guest *guest = &guests[i / PAIRS];

			mv_port_drain(drainer.worker, guest->port, i % PAIRS, 0, drainer.buffer,
				      &drainer.drained);
			mv_port_flush(guest->port, i % PAIRS);
			receive_all(guest, i % PAIRS);
		}
	}
	drainer_end(&drainer);
}

/* Each frame that was seen is in a block or counted as lost. */
static void account_captured(void)
{
	uint64_t all = 0, lost = 0;

	take_captured();
	for (unsigned int i = 0; i < n_interfaces; i++) {
		uint64_t seen, missing;

		mv_capture_counts(capture, i, &seen, &missing);
		all += seen;
		lost += missing;
	}
	printf("races: %lu frames captured by %u interfaces, %lu without room\n", n_captured,
	       n_interfaces, (unsigned long)lost);
	check(all == n_captured + lost, "captured frames are missing");
	check(n_captured > 0, "nothing was captured");
}

static int account(void)
{
	uint64_t sent = 0, received = 0, taken = 0, unsent = 0, lost = 0, left = 0;

	for (unsigned int i = 0; i < GUESTS; i++) {
		struct guest *guest = &guests[i];
		struct mv_stats stats;
		uint64_t drops = 0;
		uint16_t queued = 0;

		mv_port_stats(guest->port, &stats);
		for (unsigned int reason = 0; reason < MV_DROP_REASONS; reason++)
			drops += stats.drops[reason];
		unsent += drops - stats.drops[MV_DROP_RX_RING_DOWN] -
			  stats.drops[MV_DROP_RX_BACKLOG_FULL] - stats.drops[MV_DROP_RX_BUFFER_TOO_SMALL];
		lost += stats.drops[MV_DROP_RX_RING_DOWN] + stats.drops[MV_DROP_RX_BACKLOG_FULL] +
			stats.drops[MV_DROP_RX_BUFFER_TOO_SMALL];
		for (unsigned int pair = 0; pair < PAIRS; pair++)
			queued = (uint16_t)(queued + guest->queues[2 * pair + TX].next_avail);
		sent += queued;
		taken += stats.tx_frames;
		received += guest->received;
		left += mv_port_backlog(guest->port);
		check(guest->received == stats.rx_frames, "received is not what was delivered");
		check((uint16_t)stats.tx_frames == queued, "packets not taken");
	}
	printf("races: %lu drains, %lu changes, %lu times no memory, %lu times hot, %lu given back, "
	       "%lu left to do; %lu packets, %lu arrived, %lu refused, %lu dropped\n",
	       atomic_load(&n_drains), atomic_load(&n_controls), n_faults, n_takeovers, n_given_back, n_left,
	       (unsigned long)taken, (unsigned long)received, (unsigned long)unsent,
	       (unsigned long)lost);
	check(left == 0, "frames are left over");
	check(taken == received + unsent + lost, "packets were lost without being counted");
	check(received > 0 && sent > 0, "nothing arrived");
	return 0;
}

int main(int argc, char **argv)
{
	static const uint64_t idle_ns[POLLERS] = { 0, 20000 };
	static const struct mv_comments comments;
	pthread_t threads[THREADS];
	int r;

	check(argc == 2, "usage: races SECONDS");
	fault_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	for (unsigned int i = 0; i < NETWORKS; i++)
		networks[i] = mv_network_new(1500);
	watcher_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	watcher = mv_watcher_new(watcher_fd);
	capture_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	capture = mv_capture_new(1 << 18, 64, capture_fd, &comments);
	check(capture, "no capture");
	check(watcher, "no watcher");
	loser_fault_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	for (unsigned int i = 0; i < GUESTS; i++)
		guest_begin(i);
	loser_begin();
	for (uintptr_t i = 0; i < DRAINERS; i++)
		check(pthread_create(&threads[i], NULL, drain, (void *)(i + 1)) == 0, "no thread");
	for (unsigned int i = 0; i < POLLERS; i++) {
		pollers[i] = mv_poller_new(idle_ns[i]);
		check(pollers[i], "no memory");
		mv_poller_help(pollers[i], watcher);
		check(pthread_create(&threads[DRAINERS + i], NULL, poll_rings, pollers[i]) == 0,
		      "no thread");
	}
	check(pthread_create(&threads[WATCHER], NULL, watch_rings, NULL) == 0, "no thread");
	check(pthread_create(&threads[TAKER], NULL, take, NULL) == 0, "no thread");
	check(pthread_create(&threads[CONTROL], NULL, control, NULL) == 0, "no thread");
	check(pthread_create(&threads[DRIVER], NULL, drive, NULL) == 0, "no thread");
	sleep((unsigned int)atoi(argv[1]));
	atomic_store(&stopping, true);
	pthread_join(threads[CONTROL], NULL);
	for (unsigned int i = 0; i < POLLERS; i++)
		mv_poller_stop(pollers[i]);
	mv_watcher_stop(watcher);
	for (unsigned int i = 0; i < THREADS; i++)
		if (i != CONTROL)
			pthread_join(threads[i], NULL);
	for (unsigned int i = 0; i < POLLERS; i++)
		mv_poller_free(pollers[i]);
	mv_watcher_free(watcher);
	finish();
	account_captured();
	r = account();
	for (unsigned int i = 0; i <= GUESTS; i++)
		guest_end(&guests[i]);
	for (unsigned int i = 0; i < NETWORKS; i++)
		mv_network_free(networks[i]);
	close(fault_fd);
	close(watcher_fd);
	mv_capture_free(capture);
	close(capture_fd);
	return r;
}
