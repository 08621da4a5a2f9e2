/*
 * The C core: guest memory, virtqueues seen from the device, NIC ports, and the networks in
 * which packets go from one to another; and the system calls that need C.
 *
 * Everything between the two "cdef" lines is also what CFFI reads (see build.py), so it holds
 * declarations only. No C file of the core includes Python: the same sources build the extension,
 * the benchmarks and the sanitizer programs.
 *
 * Rules that hold for every function
 * - Guest memory and all that a frontend says is hostile. A field of guest memory is read once
 *   into private memory, the copy is checked, only the copy is used.
 * - A function returns >= 0 or a negative errno value. It never aborts, prints, waits or calls
 *   back, and its work is bounded; but mv_poller_run and mv_watcher_run are made to go on for ever.
 * - RX and TX are the guest's. Queues are counted as vhost-user does: of pair i, queue 2i is what the
 *   guest receives, queue 2i + 1 what it transmits. A port that uses one pair takes up no room for others.
 * - mv_port_drain, mv_port_flush, mv_port_enqueue and mv_port_drop_first may be called by several
 *   threads at once, for one port too; each thread that drains needs an mv_worker of its own. So may
 *   the functions that only look (stats, backlog, is_up, broken) and mv_port_count_drop. All else is
 *   control, and belongs to one thread at a time: it may go on while others move packets, but not
 *   while another one calls something for a port that is being freed.
 * - File descriptors stay the caller's: the core neither keeps one past the next mv_ring_set_*
 *   of the same kind (or the end of the port) nor closes one.
 */
#ifndef MVIRT_H
#define MVIRT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

enum mv_limit {
	MV_MAX_REGIONS = 32,		/* memory slots of one frontend */
	MV_MIN_RING_SIZE = 2,		/* of a split ring; a packed one may have a single entry */
	MV_MAX_RING_SIZE = 32768,	/* virtio 1.2, 2.7 and 2.8 */
	MV_MAX_PAIRS = 8,		/* queue pairs of one port */
	MV_MAX_CHAIN = 1024,		/* descriptors of one chain, its indirect table included */
	MV_MAX_FRAME = 14 + 65535,	/* Ethernet and an IP packet; IPv6 allows 40 more, no stack uses them */
	MV_BACKLOG = 256,		/* frames kept for a pair whose driver gives no RX buffers */
	MV_BACKLOG_BYTES = 1 << 20,	/* and their bytes */
	MV_PUNT_FRAMES = 64,		/* slow-path frames of one drain */
	MV_PUNT_BYTES = 128 * 1024,	/* and room for them; at least MV_MAX_FRAME */
	MV_MAX_WOKEN = 64,		/* receivers of one drain */
	/* The services' time for one port, in microseconds of work. */
	MV_WORK_RATE = 200 * 1000,	/* a second: 25,000 pings or 2,000 DHCP messages */
	MV_WORK_BURST = 50 * 1000,	/* saved up while nothing is asked */
	MV_WORK_PAUSE = 250,		/* and saved up before there is more, once there was too little */
	/* ICMP errors about one port's packets (RFC 1812, 4.3.2.8; RFC 4443, 2.4 (f)). */
	MV_ERROR_BURST = 50,
	MV_ERROR_INTERVAL_NS = 5 * 1000 * 1000,	/* 200 a second */
	MV_MAX_TAPS = 4,		/* captures of one port at once */
	MV_CAPTURE_ROOM = 1 << 18,	/* bytes of a capture's ring at least */
	MV_COMMENT = 48,		/* bytes of what a capture says about a frame, at most */
	MV_DROP_REASONS = 36
};

enum mv_drop {
	MV_DROP_RING_DISABLED = 0,
	MV_DROP_TX_BUFFER_INVALID = 1,
	MV_DROP_TX_TOO_SHORT = 2,
	MV_DROP_TX_TOO_LONG = 3,
	MV_DROP_OFFLOAD_NOT_NEGOTIATED = 4,
	MV_DROP_SOURCE_MAC = 5,
	MV_DROP_DESTINATION_MAC = 6,
	MV_DROP_ETHERTYPE = 7,
	MV_DROP_MULTICAST = 8,
	MV_DROP_IP_MALFORMED = 9,
	MV_DROP_NO_ROUTE = 10,
	MV_DROP_FRAGMENT = 11,
	MV_DROP_RX_RING_DOWN = 12,
	MV_DROP_RX_BACKLOG_FULL = 13,
	MV_DROP_RX_BUFFER_TOO_SMALL = 14,
	MV_DROP_RX_BUFFER_INVALID = 15,
	MV_DROP_ARP_MALFORMED = 16,
	MV_DROP_ARP_IGNORED = 17,
	MV_DROP_DHCP_MALFORMED = 18,
	MV_DROP_DHCP_IGNORED = 19,
	MV_DROP_ICMP_MALFORMED = 20,
	MV_DROP_ICMP_IGNORED = 21,
	MV_DROP_PUNT_LIMIT = 22,
	MV_DROP_OFFLOAD_INVALID = 23,
	MV_DROP_SOURCE_ADDRESS = 24,
	MV_DROP_TTL_EXCEEDED = 25,
	MV_DROP_HOST_UNREACHABLE = 26,
	MV_DROP_ADMIN_PROHIBITED = 27,
	MV_DROP_TOO_BIG = 28,
	MV_DROP_IP_OPTION = 29,
	MV_DROP_NOT_SERVED = 30,
	MV_DROP_NDP_MALFORMED = 31,
	MV_DROP_NDP_IGNORED = 32,
	MV_DROP_DHCPV6_MALFORMED = 33,
	MV_DROP_DHCPV6_IGNORED = 34,
	MV_DROP_NO_MEMORY = 35
};

/* Which service a punted frame is for. */
enum mv_punt_kind {
	MV_PUNT_ARP = 0,
	MV_PUNT_DHCPV4 = 1,
	MV_PUNT_ICMPV4 = 2,
	MV_PUNT_NDP = 3,
	MV_PUNT_ICMPV6 = 4,
	MV_PUNT_DHCPV6 = 5,
	MV_PUNT_ICMP_ERROR = 6	/* dropped and counted, and its sender is to hear why */
};

/* What the sender of a dropped packet is to hear (RFC 792, RFC 1812, RFC 4443). */
enum mv_icmp_error {
	MV_ICMP_TIME_EXCEEDED = 0,
	MV_ICMP_NET_UNREACHABLE = 1,
	MV_ICMP_HOST_UNREACHABLE = 2,
	MV_ICMP_ADMIN_PROHIBITED = 3,
	MV_ICMP_PROTOCOL_UNREACHABLE = 4,
	MV_ICMP_PORT_UNREACHABLE = 5,
	MV_ICMP_TOO_BIG = 6
};

/* What a ring needs next: the result of mv_port_drain and mv_port_flush. */
enum mv_next {
	MV_NEXT_KICK = 0,	/* nothing to do before the driver's next kick, which was asked for */
	MV_NEXT_CALL_AGAIN = 1,	/* a bound was reached with work left: let others run, call again */
	MV_NEXT_NOTHING = 2,	/* the ring is not running or broken; flush: or the backlog is empty */
	MV_NEXT_MORE_BUFFERS = 3	/* as KICK, but the frame in front needs more than there is */
};

/* A region of guest memory, in bytes (vhost-user, "Memory region description"). */
struct mv_region_spec {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t user_addr;
	uint64_t mmap_offset;
};

/*
 * The parts of a ring, as user addresses (vhost-user, "A vring address description"). Of a packed
 * ring: the descriptors, the device event area and the driver event area.
 */
struct mv_ring_addr {
	uint64_t desc;
	uint64_t used;
	uint64_t avail;
};

struct mv_stats {
	uint64_t tx_frames;
	uint64_t tx_bytes;
	uint64_t routed;		/* TX frames sent on to other ports */
	uint64_t punts;			/* frames for services */
	uint64_t icmp_errors;		/* dropped packets whose sender was to hear why */
	uint64_t kicks;			/* drains after a kick was asked for */
	uint64_t calls;
	uint64_t slow_signals;		/* of call and err, and counts of kick, made to take long */
	uint64_t drops[MV_DROP_REASONS];
	uint64_t rx_frames;
	uint64_t rx_bytes;
};

/* A slow-path frame (no virtio_net_hdr) in the buffer given to mv_port_drain. */
struct mv_punt {
	uint32_t kind;		/* enum mv_punt_kind */
	uint32_t offset;
	uint32_t length;
	uint32_t error;		/* of MV_PUNT_ICMP_ERROR: enum mv_icmp_error */
	uint32_t mtu;		/* of MV_ICMP_TOO_BIG: what it was too big for, in bytes */
};

/* A pair to flush: it has a new backlog, or a broken RX ring. */
struct mv_woken {
	uint32_t tag;		/* of the port */
	uint32_t pair;
};

/* What one drain leaves to do. */
struct mv_drained {
	unsigned int n_punts;
	unsigned int n_woken;
	struct mv_punt punts[MV_PUNT_FRAMES];
	struct mv_woken woken[MV_MAX_WOKEN];
};

/* A range of addresses; the host bits are 0. */
struct mv_prefix {
	uint8_t family;		/* 0: IPv4, 1: IPv6 */
	uint8_t length;		/* bits */
	uint8_t address[16];	/* in network byte order; IPv4: the first four */
};

/* What captures say about frames that were dropped, by reason; padded with zero bytes. */
struct mv_comments {
	char text[MV_DROP_REASONS][MV_COMMENT];
};

typedef struct mv_memory mv_memory;
typedef struct mv_region mv_region;
typedef struct mv_network mv_network;
typedef struct mv_port mv_port;
typedef struct mv_worker mv_worker;
typedef struct mv_poller mv_poller;
typedef struct mv_hot mv_hot;
typedef struct mv_capture mv_capture;
typedef struct mv_watcher mv_watcher;
typedef struct mv_watch mv_watch;

/* ---- memory.c: regions and translation ---- */

/*
 * A table without regions. When the file behind one of its regions shrinks under the daemon,
 * the region is replaced by zero pages and 1 is added to the eventfd fault_fd (SIGBUS handler);
 * fault_fd must be non-blocking and stay open until mv_memory_free() of the last table that shares
 * a region.
 * NULL when there is no memory.
 */
mv_memory *mv_memory_new(int fault_fd);

/* A second table that shares the regions of the first. NULL when there is no memory. */
mv_memory *mv_memory_copy(const mv_memory *memory);

/*
 * Map fd and add it as a region. The fd stays the caller's and may be closed afterwards.
 * -EINVAL: size 0 or not in whole pages, an overflow, an overlap in guest or user addresses,
 * misaligned mmap_offset, or not within the file; -ENOSPC: too many regions, or more than 4 TiB;
 * -ENODEV: not a file of tmpfs (memfd) or hugetlbfs; -EACCES, ...: what fstat or mmap said.
 */
int mv_memory_add(mv_memory *memory, const struct mv_region_spec *spec, int fd);

/*
 * The same in steps, for the one that may take long, which another thread may take. mv_region_new()
 * sees whether the region could be in a table and maps nothing; errors as mv_memory_add().
 */
int mv_region_new(mv_region **region, const mv_memory *memory, const struct mv_region_spec *spec,
		  int fd);

/*
 * Whether mv_region_map() may have to wait for others: on hugetlbfs it waits until nobody is at work
 * on the file, and meanwhile no other thread can change the address space of the process.
 */
bool mv_region_may_wait(const mv_region *region);

/* Map it, from a descriptor of the same file; negative: what mmap said. */
int mv_region_map(mv_region *region, int fd);

/* Unmap and free what is in no table. NULL is allowed. */
void mv_region_free(mv_region *region);

/* Add a mapped region, the table's from then on. Errors as mv_memory_add(): nothing has changed then. */
int mv_memory_adopt(mv_memory *memory, mv_region *region);

/*
 * From mv_unmap_aside_begin() to the mv_unmap_aside_end() that belongs to it, no thread that gives up
 * a table waits until its regions are unmapped: a thread of the core's does that. Large regions it
 * unmaps at any time.
 */
void mv_unmap_aside_begin(void);
void mv_unmap_aside_end(void);

/* Take the region with exactly these addresses and size out of the table; -ENOENT: none such. */
int mv_memory_remove(mv_memory *memory, const struct mv_region_spec *spec);

/* Free the table and unmap the regions that no other table shares. NULL is allowed. */
void mv_memory_free(mv_memory *memory);

/* ---- route.c: networks ---- */

/* A network without ports, whose links have this MTU in bytes. NULL when there is no memory. */
mv_network *mv_network_new(unsigned int mtu);

/* Give up the network; it goes with the last of its ports. NULL is allowed. */
void mv_network_free(mv_network *network);

/*
 * The addresses that belong to the network, in place of those before: if no port has one of them,
 * it is a host that cannot be reached, where any other address is no route. -EINVAL: host bits or a
 * length that is none; -EEXIST: the same prefix twice; -ENOMEM. Nothing has changed then.
 */
int mv_network_set_subnets(mv_network *network, const struct mv_prefix *prefixes, size_t n);

/*
 * Where the address of a prefix of full length is routed: the port's tag; -EHOSTUNREACH: it is the
 * network's, but no port's; -ENETUNREACH: no route. In *length that of the prefix which decides, in
 * bits; NULL: nobody asks, and then any thread may. Otherwise control.
 */
int64_t mv_network_lookup(const mv_network *network, const struct mv_prefix *host,
			  unsigned int *length);

/*
 * The prefixes whose packets go to this port and come from it, in place of those before, all at
 * once. The longest prefix counts. Errors as mv_network_set_subnets; -EEXIST also when another port
 * has the same prefix.
 */
int mv_port_set_routes(mv_port *port, const struct mv_prefix *prefixes, size_t n);

/* ---- worker.c: threads ---- */

/* What a thread needs to drain. NULL when there is no memory. */
mv_worker *mv_worker_new(void);

/* Free it; its thread is in no call. NULL is allowed. */
void mv_worker_free(mv_worker *worker);

/* ---- limit.c: what the services' time is worth ---- */

/* Nanoseconds of work that such a frame (enum mv_punt_kind) is to services at most. */
uint64_t mv_punt_work(unsigned int kind, uint32_t length);

/* ---- port.c, tx.c, rx.c: one NIC ---- */

/*
 * A port for the NIC with this MAC address, without routes. tag: what drains of other ports call it.
 * NULL when there is no memory.
 */
mv_port *mv_port_new(mv_network *network, const uint8_t *mac, uint32_t tag);

/* Free the port, its routes and its backlog. Its memory table stays the caller's. NULL is allowed. */
void mv_port_free(mv_port *port);

/* What the guest was told of the MTU, in bytes; the network's is the limit, and what counts first. */
void mv_port_set_mtu(mv_port *port, unsigned int mtu);

/* The virtio feature bits that the driver accepted. -EBUSY: a ring is running. */
int mv_port_set_features(mv_port *port, uint64_t features);

/*
 * Use this table from now on (NULL: none). Running rings are translated again; -EFAULT when one
 * of them is not wholly within one region of the new table: nothing has changed then. The caller
 * may free the former table once this has returned 0, and then has to drain and flush again.
 */
int mv_port_set_memory(mv_port *port, const mv_memory *memory);

/* Copy the counters, of all pairs together. */
void mv_port_stats(const mv_port *port, struct mv_stats *stats);

/* How many of the TX frames came by this pair. */
uint64_t mv_port_tx_frames(const mv_port *port, unsigned int pair);

/* Count one drop for a reason found outside the core. */
void mv_port_count_drop(mv_port *port, unsigned int reason);

/*
 * Whether these ring parts could be used with the present memory and features. -EINVAL: size not a
 * power of two from 2 to 32768 (packed: 1 to 32768), parts that are misaligned or overlap; -EFAULT:
 * a part is not wholly within one region.
 */
int mv_ring_check(const mv_port *port, unsigned int size, const struct mv_ring_addr *addr);

/*
 * Start ring `queue`, packed or split as the features say. base is what SET_VRING_BASE said, or -1
 * for nothing: the next available index to look at (0..65535), or with a packed ring the positions
 * of the next available and next used descriptor, each with its wrap counter (packed.c says which of
 * them counts, and when the ring itself does). Errors as mv_ring_check, and -EINVAL for a base that
 * cannot be; -ENOMEM; -EBUSY: it runs already.
 *
 * Of a split ring -1 is where the used ring stands.
 * Where the used index and the base differ and both are possible, the used index counts: this
 * device completes in order and keeps nothing, so a base ahead of it would lose buffers for ever
 * (frontends that reconnect with the available index do this) and one behind would return some
 * twice. A driver that may wait for an interrupt about what is used already gets one.
 */
int mv_ring_start(mv_port *port, unsigned int queue, unsigned int size,
		  const struct mv_ring_addr *addr, int64_t base);

/* Move the parts of a running ring (SET_VRING_ADDR while it runs). Errors as mv_ring_check. */
int mv_ring_move(mv_port *port, unsigned int queue, const struct mv_ring_addr *addr);

/*
 * Stop the ring and return where it stands, as GET_VRING_BASE says it; nothing is written to the
 * ring afterwards. A stopped ring returns the same value again. The RX backlog is dropped.
 */
int64_t mv_ring_stop(mv_port *port, unsigned int queue);

/* A started but disabled TX ring is consumed and discarded, a disabled RX ring left untouched. */
int mv_ring_enable(mv_port *port, unsigned int queue, bool enabled);

/* Whether the ring stands still because the driver broke its rules; a new start clears it. */
bool mv_ring_broken(mv_port *port, unsigned int queue);

/* A ring as it is at a moment. */
struct mv_ring_state {
	bool running;
	bool enabled;
	bool broken;
	bool packed;
	bool wants_kicks;	/* the driver was told to kick */
	unsigned int size;
	unsigned int next;	/* the place in the ring that is looked at next; packed: without its wrap bit */
};

/* How a ring is; all zero where there is none. */
void mv_ring_look(mv_port *port, unsigned int queue, struct mv_ring_state *state);

/*
 * The eventfd that interrupts the driver, or -1: it polls. Made non-blocking. A driver that may
 * have missed an interrupt on the former one gets one on this.
 */
int mv_ring_set_call(mv_port *port, unsigned int queue, int fd);

/* The eventfd that tells the frontend of a broken ring, or -1. Made non-blocking. */
int mv_ring_set_err(mv_port *port, unsigned int queue, int fd);

/*
 * Take frames off the TX ring of a pair for about 50 microseconds, 1 MiB, MV_PUNT_FRAMES punts or MV_MAX_WOKEN
 * receivers, and one frame at least: send them on to other ports, drop them, or copy them to
 * `buffer` (MV_PUNT_BYTES) with an entry in drained->punts. Used entries are published once for each
 * ring, and each driver interrupted at most once. Returns enum mv_next.
 *
 * worker: the calling thread's.
 * now: nanoseconds of a clock of the caller's; it only limits what goes to services, and ICMP errors.
 */
int mv_port_drain(mv_worker *worker, mv_port *port, unsigned int pair, uint64_t now,
		  uint8_t *buffer, struct mv_drained *drained);

/*
 * Put a frame (no virtio_net_hdr) at the end of the RX backlog of the first pair that is up, copied.
 * Returns 1 when it was taken, 0 when it was dropped and counted, -EINVAL: length not 14..MV_MAX_FRAME.
 */
int mv_port_enqueue(mv_port *port, const uint8_t *frame, size_t length);

/*
 * Move the backlog of a pair to its RX ring as far as the driver has given buffers; publish once,
 * interrupt at most once. Returns enum mv_next; MV_NEXT_KICK: frames are left and a kick was asked for.
 *
 * Frontends start and enable pairs that their guests do not use (cloud-hypervisor enables all). Nobody
 * receives there, and no buffers are given. So no frames go to a pair, but to the first, before the
 * driver has given it buffers: until this has found some it returns MV_NEXT_KICK.
 */
int mv_port_flush(mv_port *port, unsigned int pair);

/*
 * Give up on the first frame of a pair's backlog, for which the driver does not give enough buffers;
 * counted. For a caller that has waited after MV_NEXT_MORE_BUFFERS.
 */
void mv_port_drop_first(mv_port *port, unsigned int pair);

/* Whether frames may go to the guest: an RX ring runs, is enabled and is not broken. */
bool mv_port_is_up(const mv_port *port);

/* Frames in the backlogs of all pairs. */
unsigned int mv_port_backlog(mv_port *port);

/* ---- debt.c: time that the kernel takes for one NIC, and everybody waits ---- */

/* For so many nanoseconds nothing should be done for the port that can be made to take long. */
uint64_t mv_port_owes_ns(const mv_port *port);

/*
 * As mv_event_read(), of an eventfd that the frontend has given; the port owes for the time that it takes.
 * -EBUSY: it owes too much.
 */
int mv_port_take_kick(mv_port *port, int fd);

/* Something done for the port has held up the others for so many nanoseconds. NULL is allowed. */
void mv_port_charge(mv_port *port, uint64_t ns);

/* Until when that is, in nanoseconds of CLOCK_MONOTONIC; it may be past. */
uint64_t mv_port_due_ns(const mv_port *port);

/*
 * The port has waited until then, by a clock of the caller's. What it has come to owe meanwhile is left.
 */
void mv_port_settle(mv_port *port, uint64_t due_ns);

/* ---- poller.c: TX rings that a thread polls ---- */

/* How long a ring may be empty until its poller gives it up; in nanoseconds of one clock. */
struct mv_patience {
	uint64_t usual;		/* for any ring */
	uint64_t earned;	/* for this one, beyond that */
	uint64_t busy_at;	/* when packets were last found */
	uint64_t idle_since;	/* 0: it is not */
};

void mv_patience_begin(struct mv_patience *patience, uint64_t usual, uint64_t now);

/* Packets were found. */
void mv_patience_busy(struct mv_patience *patience, uint64_t now);

/* None were found: whether that has gone on for too long. */
bool mv_patience_ends(struct mv_patience *patience, uint64_t now);

/*
 * A poller gives up a ring that has been empty for idle_ns nanoseconds and what it has earned, or, with 0,
 * that it finds empty. NULL when there is no memory.
 */
mv_poller *mv_poller_new(uint64_t idle_ns);

/* Free it; its thread has returned, its rings are removed. NULL is allowed. */
void mv_poller_free(mv_poller *poller);

/*
 * Poll the poller's rings in turn, and sleep while there is none, until mv_poller_stop(). For a
 * thread of its own, in which all signals are blocked meanwhile but those that faults cause.
 */
void mv_poller_run(mv_poller *poller);

/* Give up all rings, now and from now on, and have mv_poller_run() return. Control. */
void mv_poller_stop(mv_poller *poller);

/*
 * While its thread polls, have it attend to the kicks that a watcher waits for, too; NULL: to nobody's, and
 * at the return it does not touch the former watcher any more, which has to be there until then. Waits for
 * a turn of the poller at most. Control.
 */
void mv_poller_help(mv_poller *poller, mv_watcher *watcher);

/*
 * Have the TX ring of a pair polled until it is given up: because it is idle, stopped or broken, or as
 * its punts come faster than they are taken. No kick is asked for meanwhile, nor afterwards: that is
 * for the caller's next mv_port_drain(), which must come. Control.
 *
 * now: as for mv_port_drain(), whose clock goes on from there.
 * stay_ns: for so long it is not given up for being empty.
 * event_fd: 1 is added when there is something for mv_hot_take() or mv_hot_take_woken(), and when the
 * ring is given up. An eventfd, non-blocking, and nobody else's.
 *
 * NULL when there is no memory.
 */
mv_hot *mv_poller_add(mv_poller *poller, mv_port *port, unsigned int pair, uint64_t now,
		      uint64_t stay_ns, int event_fd);

/* Whether the ring was given up; what was left to do until then is there to be taken. */
bool mv_hot_released(const mv_hot *hot);

/*
 * Whom else the poller has left to wake, into `woken` (MV_MAX_WOKEN): how many. To be called also while
 * there is much to do for what mv_hot_take() has returned, and by the same thread.
 */
unsigned int mv_hot_take_woken(mv_hot *hot, struct mv_woken *woken);

/*
 * What the poller has left to do, and in *buffer the punts' bytes; NULL: nothing. Valid until
 * mv_hot_done(). One thread at a time.
 */
const struct mv_drained *mv_hot_take(mv_hot *hot, const uint8_t **buffer);

/* What was taken last is dealt with. */
void mv_hot_done(mv_hot *hot);

/*
 * Have another poller go on with the ring, unless it was given up; whether it does. Waits for a turn of
 * either at most. Control.
 */
bool mv_hot_move(mv_hot *hot, mv_poller *to);

/*
 * Take the ring away from the poller, if that has not given it up; at the return it does not touch
 * the port any more. Waits for a turn of the poller at most. Then there may be more to take. Control.
 */
void mv_hot_remove(mv_hot *hot);

/* Free it, removed. NULL is allowed. */
void mv_hot_free(mv_hot *hot);

/* ---- capture.c: copies of frames, for a file ---- */

/*
 * A capture of no port yet. All that it records are blocks of a pcapng file (Enhanced Packet Blocks, times
 * in nanoseconds); an interface is a port's, and its direction the guest's: what it transmits is outbound.
 * room: bytes that may wait to be taken, rounded up.
 * snaplen: bytes of each frame at most.
 * event_fd: 1 is added when something waits where nothing did. Non-blocking, and nobody else's.
 * NULL when there is no memory.
 */
mv_capture *mv_capture_new(size_t room, uint32_t snaplen, int event_fd,
			   const struct mv_comments *comments);

/* Free it; what still waits is lost. Control. NULL is allowed. */
void mv_capture_free(mv_capture *capture);

/*
 * Record the frames of this port from now on: the number of the interface, counted from 0. Control.
 * -EEXIST: that is done already; -ENOSPC: the port has MV_MAX_TAPS captures; -ENOMEM.
 */
int mv_capture_tap(mv_capture *capture, mv_port *port);

/* No longer; nothing is recorded for it when this returns. To be called before the port goes. Control. */
void mv_capture_untap(mv_capture *capture, mv_port *port);

/*
 * Copy waiting blocks, whole ones only and as many as there is room for; returns the bytes. One thread
 * at a time. After 0 with none waiting the event comes when there is one.
 */
size_t mv_capture_take(mv_capture *capture, uint8_t *buffer, size_t size);

/* Whether nothing waits; for the thread that takes. */
bool mv_capture_is_empty(const mv_capture *capture);

/*
 * Of an interface, so many frames in blocks that were taken do not come into the file: they are lost,
 * too. Control.
 */
void mv_capture_lose(mv_capture *capture, unsigned int interface, uint64_t frames);

/* Throw away what waits: those frames are lost. For the thread that takes. */
void mv_capture_lose_waiting(mv_capture *capture);

/*
 * Frames of an interface, and those of them that are lost: there was no room for them, or as above. Control.
 */
void mv_capture_counts(const mv_capture *capture, unsigned int interface, uint64_t *seen,
		       uint64_t *lost);

/* The same of all interfaces together. Control. */
void mv_capture_totals(const mv_capture *capture, uint64_t *seen, uint64_t *lost);

/*
 * A frame that was punted has been dealt with: record it as transmitted, and as dropped for this reason
 * unless that is negative.
 */
void mv_port_record_punt(mv_port *port, const uint8_t *frame, size_t length, int reason);

/* ---- watcher.c: TX rings whose kicks a thread waits for ---- */

/* What came of a ring while it was watched; what was left to do is in `drained`, if that is not NULL. */
struct mv_watched {
	bool given_back;		/* else the last drain has asked for a kick and left nothing */
	int next;			/* enum mv_next, of the last drain */
	bool quick;			/* kicks came as quickly as the caller wanted to know */
	const struct mv_drained *drained;
	const uint8_t *buffer;		/* the punts' bytes */
};

/*
 * event_fd: 1 is added when there are rings for mv_watcher_returned(). An eventfd,
 * non-blocking, and nobody else's. NULL, with errno set, when there is no memory or no descriptor.
 */
mv_watcher *mv_watcher_new(int event_fd);

/*
 * Give it up; its thread has returned, and no poller helps it. It goes with the last of its watches. NULL
 * is allowed. Control.
 */
void mv_watcher_free(mv_watcher *watcher);

/*
 * Drain rings as their drivers kick, until mv_watcher_stop(). For a thread of its own, in which all
 * signals are blocked meanwhile but those that faults cause.
 */
void mv_watcher_run(mv_watcher *watcher);

/* Have mv_watcher_run() return. Nothing is drained from now on. Control. */
void mv_watcher_stop(mv_watcher *watcher);

/*
 * The keys of rings that were given back or offered, each once, in that order: how many; with `most` of
 * them there may be more. Control.
 */
unsigned int mv_watcher_returned(mv_watcher *watcher, int64_t *keys, unsigned int most);

/*
 * For the TX ring of a pair, not watched yet. key: what mv_watcher_returned() calls it. now: as
 * for mv_port_drain(), whose clock goes on from there. NULL when there is no memory.
 */
mv_watch *mv_watch_new(mv_watcher *watcher, mv_port *port, unsigned int pair, int64_t key, uint64_t now);

/*
 * Drain the ring when its driver kicks, from now on. The last mv_port_drain() returned MV_NEXT_KICK.
 * Each drain asks for another kick, until there is something for the caller: what a drain has left to
 * do, or another result than MV_NEXT_KICK. Then the ring is given back. After `burst` kicks that bring
 * frames in less than quick_ns nanoseconds it is offered, once, and drained on. Control.
 *
 * kick_fd: the driver's eventfd, which must stay open until mv_watch_end(). What it counts is left to
 * the caller. -ECANCELED: the watcher was stopped; -EBUSY: it is watched; or as epoll_ctl(). The ring is
 * not watched then.
 */
int mv_watch_begin(mv_watch *watch, int kick_fd, unsigned int burst, uint64_t quick_ns);

/*
 * Do not watch it any more; at the return no thread of these touches the port. What came of it is in
 * *watched, whose pointers are good until the next mv_watch_begin() or mv_watch_free(). May be called
 * again, and says the same. Waits for a drain at most, and for nothing if it was given back. Control.
 */
void mv_watch_end(mv_watch *watch, struct mv_watched *watched);

/* Free it; it is not watched any more, see mv_watch_end(). NULL is allowed. Control. */
void mv_watch_free(mv_watch *watch);

/* ---- event.c: foreign eventfds ---- */

/* 1: an eventfd, 0: something else, negative: fd unusable. */
int mv_event_check(int fd);

/* Read the counter without ever blocking: 1 read, 0 it was zero, negative error. */
int mv_event_read(int fd);

/*
 * Add 1 without ever blocking: 1 added (a full counter stays full), negative error. Without
 * mv_event_never_blocks() also 0: the counter is full.
 */
int mv_event_write(int fd);

/*
 * Whether the kernel has what mv_event_write() needs (Linux-native asynchronous I/O). If not, a
 * frontend that fills its call eventfd at the right moment can block the thread.
 */
bool mv_event_never_blocks(void);

/* ---- rights.c: system calls by which a process gives up rights, that neither libc nor Python has.
 *
 * All of them count for the calling thread, and for the threads that it makes afterwards. ----
 */

/* Landlock (landlock(7)): which version the kernel has, or -ENOSYS, -EOPNOTSUPP: none. */
int mv_landlock_abi(void);

/*
 * A ruleset that denies the actions of three sets, as bits of linux/landlock.h: a descriptor, the
 * caller's, or a negative error; -EINVAL: a bit that the kernel does not know.
 */
int mv_landlock_create(uint64_t fs, uint64_t net, uint64_t scoped);

/* Allow the actions `fs` beneath the open file `parent_fd` (O_PATH will do). */
int mv_landlock_allow(int ruleset_fd, uint64_t fs, int parent_fd);

/*
 * Load the library that glibc loads when a thread ends itself for the first time, as Python's daemon
 * threads do at the end of the process; it aborts when that cannot be had any more.
 */
void mv_landlock_preload(void);

/* Put the ruleset in force, for good; needs mv_rights_freeze(). */
int mv_landlock_enforce(int ruleset_fd);

/* No exec gives rights from here on: set-uid bits and file capabilities count for nothing. */
int mv_rights_freeze(void);

/*
 * Empty the set that limits what an exec can give. Without CAP_SETPCAP, which changing user takes away,
 * nothing is done, and mv_rights_freeze() alone sees to that.
 */
int mv_rights_clear_bounding_set(void);

/* Give up all capabilities that are held or can be passed on. */
int mv_rights_clear_capabilities(void);

/* Neither core dumps nor ptrace, except by those with CAP_SYS_PTRACE. */
int mv_rights_deny_inspection(void);

/* cdef: end */

#endif
