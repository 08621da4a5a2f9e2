/*
 * Routes of one network: who has which prefix, and which prefix an address belongs to.
 *
 * Theory of operation. There are two forms of the same thing, for IPv4 and IPv6 each. The *book* is
 * what control writes: prefixes, sorted, each with its owner. From it a *map* is made for the
 * forwarding path: the address space cut into intervals that never overlap, sorted by their first
 * address, so that the longest prefix of an address is found by one search and nothing has to be
 * looked at twice. N prefixes make at most 2 N + 1 intervals.
 *
 * A map never changes. A new one is made beside it and put in its place by one pointer store, so
 * lookups take no lock and see all of a change or nothing of it. The old one is freed when all drains
 * have ended that may still be looking at it (worker.c).
 *
 * Barriers, by letter; all of these are sequentially consistent, for E of worker.c:
 *   H  store of a map or of broadcasts: with the load of who looks at it.
 *   I  store of the edition, after the map: with the load of who has a memo. Whoever sees the new
 *      edition sees the new map too.
 *
 * Search is binary, over the few intervals that an index names for the address's upper bits. Where
 * addresses lie close together, which is what subnets are made of, one or two probes are left. (Without
 * an index, each packet to another address: 1.9 among 100,000 routes, 1.35 among 10,000; but 0.90 among
 * 100, so it is for large networks.)
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An address as a number; an IPv4 address is in the lower 32 bits. */
typedef unsigned __int128 mv_address;

/* Prefixes within one another: each length, for a subnet and for a NIC. */
enum { MAX_NESTED = 2 * 129 };

struct entry {
	mv_address first;
	mv_address last;
	unsigned int length;	/* of the prefix, in bits */
	struct mv_hop hop;
};

struct book {
	struct entry *entries;	/* by first address, shorter prefixes first, subnets before NICs */
	size_t n;
};

struct mv_map {
	size_t n;		/* intervals; the first one begins at address 0 */
	mv_address *starts;
	struct mv_hop *hops;
	mv_address base;	/* what the index counts from: the second interval's start */
	unsigned int shift;
	size_t n_slots;
	uint32_t *index;	/* slot → the last interval that begins at or before it */
};

struct mv_network {
	unsigned int mtu;
	unsigned int ports;
	bool orphaned;		/* goes with its last port */
	struct broadcasts *broadcasts;	/* atomic; NULL: none */
	uint64_t edition;	/* atomic; one more with each change of a route */
	struct book books[MV_FAMILIES];
	struct mv_map *maps[MV_FAMILIES];	/* atomic */
};

/* The last address of each IPv4 subnet that keeps it for all hosts. */
struct broadcasts {
	size_t n;
	uint32_t addresses[];
};

static unsigned int address_bits(enum mv_family family)
{
	return family == MV_IPV4 ? 32 : 128;
}

/* All ones in the lower n bits. */
static mv_address low_bits(unsigned int n)
{
	return n == 128 ? ~(mv_address)0 : ((mv_address)1 << n) - 1;
}

static mv_address load_address(enum mv_family family, const uint8_t *bytes)
{
	uint64_t upper, lower;
	uint32_t ipv4;

	if (family == MV_IPV4) {
		memcpy(&ipv4, bytes, sizeof(ipv4));
		return __builtin_bswap32(ipv4);
	}
	memcpy(&upper, bytes, sizeof(upper));
	memcpy(&lower, bytes + sizeof(upper), sizeof(lower));
	return (mv_address)__builtin_bswap64(upper) << 64 | __builtin_bswap64(lower);
}

/* ---- the map ---- */

static void map_free(struct mv_map *map)
{
	if (!map)
		return;
	free(map->starts);
	free(map->hops);
	free(map->index);
	free(map);
}

static bool same_hop(struct mv_hop a, struct mv_hop b)
{
	return a.port == b.port && a.on_link == b.on_link;
}

/* From `start` on addresses go to `hop`, until the next call says otherwise. */
static void cut(struct mv_map *map, mv_address start, struct mv_hop hop)
{
	if (map->n > 0 && map->starts[map->n - 1] == start)
		map->n--;
	if (map->n > 0 && same_hop(map->hops[map->n - 1], hop))
		return;
	map->starts[map->n] = start;
	map->hops[map->n++] = hop;
}

/* Close the prefixes that end before `until`: after each, the one around it goes on. */
static unsigned int close_before(struct mv_map *map, const struct entry **open, unsigned int depth,
				 const mv_address *until)
{
	while (depth > 0 && (!until || open[depth - 1]->last < *until)) {
		mv_address after = open[--depth]->last + 1;
		struct mv_hop around = depth > 0 ? open[depth - 1]->hop : (struct mv_hop){ 0 };

		if (after != 0)
			cut(map, after, around);
	}
	return depth;
}

/* Sorted as the book is, a prefix comes right before those within it. */
static void cut_all(struct mv_map *map, const struct book *book, enum mv_family family)
{
	const struct entry *open[MAX_NESTED];
	unsigned int depth = 0;

	cut(map, 0, (struct mv_hop){ 0 });
	for (size_t i = 0; i < book->n; i++) {
		const struct entry *entry = &book->entries[i];

		depth = close_before(map, open, depth, &entry->first);
		cut(map, entry->first, entry->hop);
		open[depth++] = entry;
	}
	close_before(map, open, depth, NULL);
	/* What lies behind the last address of the family is no interval. */
	if (map->n > 1 && map->starts[map->n - 1] > low_bits(address_bits(family)))
		map->n--;
}

/* About one slot for each interval, over the span in which intervals begin. */
static int make_index(struct mv_map *map)
{
	mv_address span;
	size_t interval = 0;

	if (map->n < 2)
		return 0;
	map->base = map->starts[1];
	span = map->starts[map->n - 1] - map->base;
	while (span >> map->shift >= map->n)
		map->shift++;
	map->n_slots = (size_t)(span >> map->shift) + 1;
	map->index = calloc(map->n_slots + 1, sizeof(*map->index));
	if (!map->index)
		return -ENOMEM;
	for (size_t slot = 0; slot < map->n_slots; slot++) {
		mv_address begin = map->base + ((mv_address)slot << map->shift);

		while (interval + 1 < map->n && map->starts[interval + 1] <= begin)
			interval++;
		map->index[slot] = (uint32_t)interval;
	}
	map->index[map->n_slots] = (uint32_t)map->n - 1;
	return 0;
}

static struct mv_map *map_new(const struct book *book, enum mv_family family)
{
	struct mv_map *map = calloc(1, sizeof(*map));
	size_t room = 2 * book->n + 1;

	if (!map)
		return NULL;
	map->starts = malloc(room * sizeof(*map->starts));
	map->hops = malloc(room * sizeof(*map->hops));
	if (!map->starts || !map->hops)
		goto fail;
	cut_all(map, book, family);
	if (make_index(map) < 0)
		goto fail;
	return map;
fail:
	map_free(map);
	return NULL;
}

/* forget_routes() may change a hop. */
static struct mv_hop hop_at(const struct mv_map *map, size_t interval)
{
	const struct mv_hop *hop = &map->hops[interval];

	return (struct mv_hop){
		.port = __atomic_load_n(&hop->port, __ATOMIC_RELAXED),
		.on_link = __atomic_load_n(&hop->on_link, __ATOMIC_RELAXED),
	};
}

struct mv_hop mv_route(const struct mv_network *network, enum mv_family family,
		       const uint8_t *address)
{
	const struct mv_map *map = __atomic_load_n(&network->maps[family], __ATOMIC_SEQ_CST); /* H */
	mv_address wanted = load_address(family, address);
	size_t slot, low, n;

	if (map->n == 1 || wanted < map->base)
		return hop_at(map, 0);
	slot = wanted >= map->starts[map->n - 1] ? map->n_slots :
						    (size_t)((wanted - map->base) >> map->shift);
	low = map->index[slot];
	n = (slot < map->n_slots ? map->index[slot + 1] : low) - low + 1;
	while (n > 1) {
		size_t half = n / 2;

		/* Compiled to a conditional move: which way it goes cannot be predicted. */
		low += map->starts[low + half] <= wanted ? half : 0;
		n -= half;
	}
	return hop_at(map, low);
}

/* ---- the book ---- */

static int compare_entries(const void *left, const void *right)
{
	const struct entry *a = left, *b = right;

	if (a->first != b->first)
		return a->first < b->first ? -1 : 1;
	if (a->length != b->length)
		return a->length < b->length ? -1 : 1;
	/* A subnet may be a NIC's own prefix, which then counts. */
	return (int)b->hop.on_link - (int)a->hop.on_link;
}

static int entry_of(struct entry *entry, const struct mv_prefix *prefix, struct mv_hop hop)
{
	enum mv_family family = (enum mv_family)prefix->family;
	mv_address host;

	if (prefix->length > address_bits(family))
		return -EINVAL;
	host = low_bits(address_bits(family) - prefix->length);
	entry->first = load_address(family, prefix->address);
	if (entry->first & host)
		return -EINVAL;
	entry->last = entry->first | host;
	entry->length = prefix->length;
	entry->hop = hop;
	return 0;
}

/*
 * A copy of the book of one family in which `hop` has exactly those of `prefixes` that are of that
 * family. -EINVAL, -EEXIST, -ENOMEM.
 */
static int book_with(struct book *result, const struct book *book, enum mv_family family,
		     struct mv_hop hop, const struct mv_prefix *prefixes, size_t n)
{
	struct entry *entries = malloc((book->n + n + 1) * sizeof(*entries));
	size_t used = 0, i;
	int r = 0;

	if (!entries)
		return -ENOMEM;
	for (i = 0; i < book->n; i++)
		if (!same_hop(book->entries[i].hop, hop))
			entries[used++] = book->entries[i];
	for (i = 0; i < n && r == 0; i++)
		if (prefixes[i].family == family)
			r = entry_of(&entries[used++], &prefixes[i], hop);
	if (r == 0)
		qsort(entries, used, sizeof(*entries), compare_entries);
	for (i = 1; i < used && r == 0; i++)
		if (compare_entries(&entries[i - 1], &entries[i]) == 0)
			r = -EEXIST;
	if (r < 0) {
		free(entries);
		return r;
	}
	*result = (struct book){ .entries = entries, .n = used };
	return 0;
}

/* Make book and map anew, both or neither. */
struct edition {
	struct book book;
	struct mv_map *map;
};

static int edition_make(struct edition *edition, const struct mv_network *network,
			enum mv_family family, struct mv_hop hop, const struct mv_prefix *prefixes,
			size_t n)
{
	int r = book_with(&edition->book, &network->books[family], family, hop, prefixes, n);

	if (r < 0)
		return r;
	edition->map = map_new(&edition->book, family);
	return edition->map ? 0 : -ENOMEM;
}

static void edition_drop(struct edition *edition)
{
	free(edition->book.entries);
	map_free(edition->map);
}

static void count_edition(struct mv_network *network)
{
	__atomic_store_n(&network->edition, network->edition + 1, __ATOMIC_SEQ_CST); /* I */
}

static void edition_swap(struct edition *edition, struct mv_network *network,
			 enum mv_family family)
{
	struct edition former = { network->books[family], network->maps[family] };

	network->books[family] = edition->book;
	__atomic_store_n(&network->maps[family], edition->map, __ATOMIC_SEQ_CST); /* H */
	count_edition(network);
	*edition = former;
}

static int set_prefixes(struct mv_network *network, struct mv_hop hop,
			const struct mv_prefix *prefixes, size_t n)
{
	struct edition editions[MV_FAMILIES] = { 0 };
	int r = 0;

	for (size_t i = 0; i < n; i++)
		if (prefixes[i].family >= MV_FAMILIES)
			return -EINVAL;
	for (unsigned int family = 0; family < MV_FAMILIES && r == 0; family++)
		r = edition_make(&editions[family], network, family, hop, prefixes, n);
	if (r == 0) {
		for (unsigned int family = 0; family < MV_FAMILIES; family++)
			edition_swap(&editions[family], network, family);
		mv_workers_wait();
	}
	for (unsigned int family = 0; family < MV_FAMILIES; family++)
		edition_drop(&editions[family]);
	return r;
}

/* ---- the network ---- */

mv_network *mv_network_new(unsigned int mtu)
{
	mv_network *network = calloc(1, sizeof(*network));

	if (!network)
		return NULL;
	network->mtu = mtu;
	/* Empty books, each with its map of one interval. */
	if (set_prefixes(network, (struct mv_hop){ .on_link = true }, NULL, 0) < 0) {
		free(network);
		return NULL;
	}
	return network;
}

static void network_release(mv_network *network)
{
	for (unsigned int family = 0; family < MV_FAMILIES; family++) {
		free(network->books[family].entries);
		map_free(network->maps[family]);
	}
	free(network->broadcasts);
	free(network);
}

void mv_network_free(mv_network *network)
{
	if (!network)
		return;
	network->orphaned = true;
	if (network->ports == 0)
		network_release(network);
}

/* A link of two keeps no address for all hosts (RFC 3021). */
static bool has_broadcast(const struct mv_prefix *prefix)
{
	return prefix->family == MV_IPV4 && prefix->length <= 30;
}

static uint32_t ipv4_of(const uint8_t *address)
{
	return (uint32_t)load_address(MV_IPV4, address);
}

int mv_network_set_subnets(mv_network *network, const struct mv_prefix *prefixes, size_t n)
{
	struct broadcasts *broadcasts, *former = network->broadcasts;
	int r;

	broadcasts = malloc(sizeof(*broadcasts) + n * sizeof(broadcasts->addresses[0]));
	if (!broadcasts)
		return -ENOMEM;
	broadcasts->n = 0;
	r = set_prefixes(network, (struct mv_hop){ .on_link = true }, prefixes, n);
	if (r < 0) {
		free(broadcasts);
		return r;
	}
	for (size_t i = 0; i < n; i++)
		if (has_broadcast(&prefixes[i]))
			broadcasts->addresses[broadcasts->n++] =
				ipv4_of(prefixes[i].address) |
				(uint32_t)low_bits(32U - prefixes[i].length);
	__atomic_store_n(&network->broadcasts, broadcasts, __ATOMIC_SEQ_CST); /* H */
	mv_workers_wait();
	free(former);
	return 0;
}

bool mv_network_is_broadcast(const struct mv_network *network, const uint8_t *address)
{
	const struct broadcasts *broadcasts =
		__atomic_load_n(&network->broadcasts, __ATOMIC_SEQ_CST); /* H */

	for (size_t i = 0; broadcasts && i < broadcasts->n; i++)
		if (broadcasts->addresses[i] == ipv4_of(address))
			return true;
	return false;
}

/* The length of the longest prefix that holds an address; 0: none, or one of no length. */
static unsigned int longest(const struct book *book, mv_address address)
{
	unsigned int length = 0;

	/* Of those that hold it, the last one in the book lies within all others. */
	for (size_t i = 0; i < book->n && book->entries[i].first <= address; i++)
		if (address <= book->entries[i].last)
			length = book->entries[i].length;
	return length;
}

int64_t mv_network_lookup(const mv_network *network, const struct mv_prefix *host,
			  unsigned int *length)
{
	struct mv_hop hop;

	if (host->family >= MV_FAMILIES)
		return -EINVAL;
	if (length)
		*length = longest(&network->books[host->family],
				  load_address((enum mv_family)host->family, host->address));
	hop = mv_route(network, (enum mv_family)host->family, host->address);
	if (hop.port)
		return hop.port->tag;
	return hop.on_link ? -EHOSTUNREACH : -ENETUNREACH;
}

int mv_port_set_routes(mv_port *port, const struct mv_prefix *prefixes, size_t n)
{
	return set_prefixes(port->network, (struct mv_hop){ .port = port }, prefixes, n);
}

unsigned int mv_network_mtu(const struct mv_network *network)
{
	return network->mtu;
}

const uint64_t *mv_network_enter(struct mv_network *network)
{
	network->ports++;
	return &network->edition;
}

/* Taking routes away needs memory too; without any, a map that names a freed port must not stay. */
static void forget_routes(struct mv_network *network, const mv_port *port)
{
	for (unsigned int family = 0; family < MV_FAMILIES; family++) {
		struct book *book = &network->books[family];
		struct mv_map *map = network->maps[family];
		size_t used = 0;

		for (size_t i = 0; i < book->n; i++)
			if (book->entries[i].hop.port != port)
				book->entries[used++] = book->entries[i];
		book->n = used;
		for (size_t i = 0; i < map->n; i++)
			if (map->hops[i].port == port) {
				__atomic_store_n(&map->hops[i].port, NULL, __ATOMIC_RELAXED);
				__atomic_store_n(&map->hops[i].on_link, true, __ATOMIC_RELAXED);
			}
	}
	count_edition(network);
	mv_workers_wait();
}

void mv_network_leave(struct mv_network *network, mv_port *port)
{
	if (mv_port_set_routes(port, NULL, 0) < 0)
		forget_routes(network, port);
	if (--network->ports == 0 && network->orphaned)
		network_release(network);
}
