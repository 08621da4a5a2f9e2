/*
 * Routes, against a list that is searched from one end to the other.
 *
 * The input is a sequence of changes and lookups in one network with a few ports. Prefixes are made
 * of few bits, so that they nest, touch and collide.
 */
#include "common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	PORTS = 4,
	NOBODY = PORTS,		/* the network itself: whose subnets are on link */
	MAX_PREFIXES = 12,	/* of one change */
	MAX_ROUTES = (PORTS + 1) * MAX_PREFIXES,
	MAX_STEPS = 64,
};

struct route {
	struct mv_prefix prefix;
	unsigned int owner;
};

/* What the network was told; the core has made something quicker of it. */
struct model {
	struct route routes[MAX_ROUTES];
	size_t n;
};

static bool bit(const uint8_t *address, unsigned int n)
{
	return address[n / 8] >> (7 - n % 8) & 1;
}

static unsigned int family_bits(unsigned int family)
{
	return family == MV_IPV4 ? 32 : 128;
}

static bool holds(const struct mv_prefix *prefix, const struct mv_prefix *host)
{
	if (prefix->family != host->family)
		return false;
	for (unsigned int n = 0; n < prefix->length; n++)
		if (bit(prefix->address, n) != bit(host->address, n))
			return false;
	return true;
}

static bool is_valid(const struct mv_prefix *prefix)
{
	if (prefix->family >= MV_FAMILIES || prefix->length > family_bits(prefix->family))
		return false;
	for (unsigned int n = prefix->length; n < family_bits(prefix->family); n++)
		if (bit(prefix->address, n))
			return false;
	return true;
}

static bool same_prefix(const struct mv_prefix *a, const struct mv_prefix *b)
{
	return a->family == b->family && a->length == b->length && holds(a, b);
}

/* Whether two routes may not be there together: a subnet may be a port's own prefix. */
static bool collide(const struct route *a, const struct route *b)
{
	return same_prefix(&a->prefix, &b->prefix) && (a->owner == NOBODY) == (b->owner == NOBODY);
}

/* The model with other prefixes for one owner; false: the core must refuse that. */
static bool change(struct model *model, unsigned int owner, const struct mv_prefix *prefixes, size_t n)
{
	struct model next = { .n = 0 };

	for (size_t i = 0; i < model->n; i++)
		if (model->routes[i].owner != owner)
			next.routes[next.n++] = model->routes[i];
	for (size_t i = 0; i < n; i++) {
		struct route route = { .prefix = prefixes[i], .owner = owner };

		if (!is_valid(&prefixes[i]))
			return false;
		for (size_t j = 0; j < next.n; j++)
			if (collide(&next.routes[j], &route))
				return false;
		next.routes[next.n++] = route;
	}
	*model = next;
	return true;
}

/* As mv_network_lookup(). */
static int64_t search(const struct model *model, const struct mv_prefix *host)
{
	const struct route *best = NULL;

	for (size_t i = 0; i < model->n; i++) {
		const struct route *route = &model->routes[i];

		if (!holds(&route->prefix, host))
			continue;
		if (!best || route->prefix.length > best->prefix.length ||
		    (route->prefix.length == best->prefix.length && best->owner == NOBODY))
			best = route;
	}
	if (!best)
		return -ENETUNREACH;
	return best->owner == NOBODY ? -EHOSTUNREACH : (int64_t)best->owner;
}

static bool is_broadcast(const struct model *model, const struct mv_prefix *host)
{
	for (size_t i = 0; i < model->n; i++) {
		const struct route *route = &model->routes[i];
		bool last = true;

		if (route->owner != NOBODY || route->prefix.family != MV_IPV4 ||
		    route->prefix.length > 30 || !holds(&route->prefix, host))
			continue;
		for (unsigned int n = route->prefix.length; n < 32; n++)
			last = last && bit(host->address, n);
		if (last)
			return true;
	}
	return false;
}

/* An address of few bits: the first and the last byte, and what fills those between them. */
static void take_address(struct input *input, struct mv_prefix *prefix)
{
	unsigned int bytes = family_bits(prefix->family) / 8;
	uint8_t ends[3];

	take(input, ends, sizeof(ends));
	memset(prefix->address, ends[2] & 1 ? 0xff : 0, sizeof(prefix->address));
	prefix->address[0] = ends[0];
	prefix->address[bytes - 1] = ends[1];
	if (bytes < sizeof(prefix->address))
		memset(prefix->address + bytes, 0, sizeof(prefix->address) - bytes);
}

static struct mv_prefix take_prefix(struct input *input)
{
	uint8_t how = take8(input);
	struct mv_prefix prefix = { .family = how & 1, .length = take8(input) };

	take_address(input, &prefix);
	/* Wrong ones too, but few. */
	if (how >> 4 != 0) {
		prefix.length = (uint8_t)(prefix.length % (family_bits(prefix.family) + 1));
		for (unsigned int n = prefix.length; n < family_bits(prefix.family); n++)
			prefix.address[n / 8] &= (uint8_t)~(1U << (7 - n % 8));
	} else if (how >> 1 == 1) {
		prefix.family = 2;
	}
	return prefix;
}

struct scene {
	mv_network *network;
	mv_port *ports[PORTS];
	struct model model;
};

static mv_port *new_port(const struct scene *scene, unsigned int i)
{
	const uint8_t mac[6] = { 0x52, 0x54, 0, 0, 0, (uint8_t)i };
	mv_port *port = mv_port_new(scene->network, mac, i);

	CHECK(port);
	return port;
}

static void set_prefixes(struct scene *scene, struct input *input, unsigned int owner)
{
	struct mv_prefix prefixes[MAX_PREFIXES];
	size_t n = take8(input) % (MAX_PREFIXES + 1);
	bool valid;
	int r;

	for (size_t i = 0; i < n; i++)
		prefixes[i] = take_prefix(input);
	valid = change(&scene->model, owner, prefixes, n);
	if (owner == NOBODY)
		r = mv_network_set_subnets(scene->network, prefixes, n);
	else
		r = mv_port_set_routes(scene->ports[owner], prefixes, n);
	CHECK(valid ? r == 0 : r == -EINVAL || r == -EEXIST);
}

static void look_up(struct scene *scene, const struct mv_prefix *host)
{
	int64_t found = mv_network_lookup(scene->network, host, NULL);
	struct mv_hop hop;

	CHECK(found == search(&scene->model, host));
	hop = mv_route(scene->network, (enum mv_family)host->family, host->address);
	CHECK(hop.port ? found == hop.port->tag :
			 found == (hop.on_link ? -EHOSTUNREACH : -ENETUNREACH));
	if (host->family == MV_IPV4)
		CHECK(mv_network_is_broadcast(scene->network, host->address) ==
		      is_broadcast(&scene->model, host));
}

/* Next to the ends of all prefixes is where a search goes wrong. */
static void look_around(struct scene *scene)
{
	for (size_t i = 0; i < scene->model.n; i++) {
		struct mv_prefix host = scene->model.routes[i].prefix;
		unsigned int bytes = family_bits(host.family) / 8, length = host.length;

		look_up(scene, &host);
		for (unsigned int n = length; n < bytes * 8; n++)
			host.address[n / 8] |= (uint8_t)(1U << (7 - n % 8));
		look_up(scene, &host);
		for (unsigned int n = bytes; n-- > 0 && ++host.address[n] == 0;)
			;
		look_up(scene, &host);
	}
}

static void step(struct scene *scene, struct input *input)
{
	uint8_t what = take8(input);
	unsigned int owner = what / 8 % PORTS;
	struct mv_prefix host = { .family = what >> 7 };

	switch (what % 8) {
	case 0:
	case 1:
	case 2:
		set_prefixes(scene, input, owner);
		break;
	case 3:
		set_prefixes(scene, input, NOBODY);
		break;
	case 4:
		mv_port_free(scene->ports[owner]);
		CHECK(change(&scene->model, owner, NULL, 0));
		scene->ports[owner] = new_port(scene, owner);
		break;
	case 5:
		look_around(scene);
		break;
	default:
		take_address(input, &host);
		look_up(scene, &host);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };
	struct scene scene = { .network = mv_network_new(1500) };

	CHECK(scene.network);
	for (unsigned int i = 0; i < PORTS; i++)
		scene.ports[i] = new_port(&scene, i);
	for (unsigned int n = 0; input.size > 0 && n < MAX_STEPS; n++)
		step(&scene, &input);
	look_around(&scene);
	/* The network goes with its last port, whichever order that is. */
	mv_network_free(scene.network);
	for (unsigned int i = 0; i < PORTS; i++)
		mv_port_free(scene.ports[i]);
	return 0;
}
