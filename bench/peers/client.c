/*
 * The client of every backend: `client EAL-OPTIONS -- OPTIONS`, then a command a line.
 *
 * Ports are taken in pairs: frames go from port 0 to 1, from 2 to 3 and so on, with
 * `directions=2` also back. Only the first of them are used with `pairs=N`. It polls, from one
 * thread, and answers each command with one line of JSON. The first line, without command, says that
 * the ports are up and what features they have.
 *
 *   flood size=B seconds=S              as many frames as the backend takes
 *   load size=B rate=FRAMES/S seconds=S so many, each with the time at which it was sent; with
 *                                       `flooding=N` beside so many more pairs that flood, of which
 *                                       only `flooded` tells, the frames that have arrived
 *   ping size=B count=N pause_us=T      one at a time, from port 0 to 1, asleep in between
 */
#include "client.h"

#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ether.h>

enum {
	MAX_FLOWS = MAX_PORTS,
	MAX_SAMPLES = 1 << 20,
	LINE = 256,
	THOROUGH = 512,		/* of so many frames one is looked at thoroughly */
	WARM_UP_MS = 50,
	PATIENCE_MS = 200,	/* until a frame is taken for lost */
	SILENCE_MS = 20,	/* after which no more are expected */
	MAX_LOST = 20,
};

struct command {
	char name[16];
	uint32_t size;
	unsigned int directions;
	unsigned int pairs;
	unsigned int flooding;		/* pairs more */
	double seconds;
	double rate;
	unsigned int count;
	unsigned int pause_us;
};

struct client {
	struct port ports[MAX_PORTS];
	unsigned int port_count;
	struct flow flows[MAX_FLOWS];	/* of each pair, forth and back */
	unsigned int flow_count;
	struct flow *active[MAX_FLOWS];	/* those that the command is about */
	unsigned int active_count;
	unsigned int measured;		/* so many of them; the others flood beside */
	struct port_options port_options;
	struct flow_options flow_options;
	uint64_t *samples;		/* of latency, in cycles */
	uint32_t sample_count;
	uint64_t stride;		/* of so many frames one is a sample */
	double seconds;			/* that the last measurement took */
	uint64_t warm_up;		/* frames that had arrived before it */
};

static struct client client;

static uint64_t cycles(double seconds)
{
	return (uint64_t)(seconds * (double)rte_get_tsc_hz());
}

static uint64_t milliseconds(unsigned int count)
{
	return rte_get_tsc_hz() / 1000 * count;
}

/* Send up to `count` frames; returns how many the port took. */
static unsigned int send_some(struct flow *flow, unsigned int count, bool stamped)
{
	struct rte_mbuf *frames[BURST];
	unsigned int made = flow_make(flow, frames, count), sent;

	if (stamped) {
		for (unsigned int i = 0; i < made; i++)
			flow_stamp(flow, frames[i], rte_rdtsc());
	}
	sent = port_send(flow->from, frames, (uint16_t)made);
	flow->sent += sent;
	if (sent < made)
		rte_pktmbuf_free_bulk(frames + sent, made - sent);
	return sent;
}

static void take_sample(const struct flow *flow, const struct rte_mbuf *frame, uint64_t now)
{
	if (flow->received % client.stride == 0 && client.sample_count < MAX_SAMPLES)
		client.samples[client.sample_count++] = now - flow_stamp_of(flow, frame);
}

/*
 * Receive what is there, at most a burst. To look at a whole frame takes as long as to pass it on,
 * so that few are looked at thoroughly, the first of a command among them.
 */
static unsigned int receive_some(struct flow *flow, bool stamped)
{
	struct rte_mbuf *frames[BURST];
	unsigned int count = port_receive(flow->to, frames, BURST);
	uint64_t now = stamped ? rte_rdtsc() : 0;

	for (unsigned int i = 0; i < count; i++)
		rte_prefetch0(rte_pktmbuf_mtod(frames[i], void *));
	for (unsigned int i = 0; i < count; i++) {
		if (flow_check(flow, frames[i], flow->received % THOROUGH == 0) && stamped)
			take_sample(flow, frames[i], now);
	}
	rte_pktmbuf_free_bulk(frames, count);
	return count;
}

/* Begin again, but whatever was wrong or late remains so. */
static void forget_counts(void)
{
	for (unsigned int i = 0; i < client.active_count; i++) {
		struct flow *flow = client.active[i];

		flow->sent = flow->unsent = flow->received = flow->foreign = 0;
	}
	client.sample_count = 0;
}

static uint64_t received_by(unsigned int first, unsigned int end)
{
	uint64_t sum = 0;

	for (unsigned int i = first; i < end; i++)
		sum += client.active[i]->received;
	return sum;
}

static uint64_t received(void)
{
	return received_by(0, client.measured);
}

static uint64_t sent(void)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < client.measured; i++)
		sum += client.active[i]->sent;
	return sum;
}

static uint64_t flooded(void)
{
	return received_by(client.measured, client.active_count);
}

/*
 * Until no more frames come; what a backend keeps for longer is lost, and late in the next command. To
 * wait long for a frame of a flood would be in the processor time of those that poll.
 */
static void drain(const struct command *command)
{
	unsigned int patience = command->rate > 0 ? PATIENCE_MS : SILENCE_MS;
	uint64_t last = rte_rdtsc();

	while (rte_rdtsc() - last < milliseconds(received() < sent() ? patience : SILENCE_MS)) {
		for (unsigned int i = 0; i < client.active_count; i++) {
			if (receive_some(client.active[i], false))
				last = rte_rdtsc();
		}
	}
}

static void flood_some(struct flow *flow)
{
	send_some(flow, BURST, false);
	receive_some(flow, false);
}

/* All flows but the first. */
static void flood_until(uint64_t end, unsigned int first)
{
	while (rte_rdtsc() < end) {
		for (unsigned int i = first; i < client.active_count; i++)
			flood_some(client.active[i]);
	}
}

static void flood(const struct command *command)
{
	uint64_t begin;

	flood_until(rte_rdtsc() + milliseconds(WARM_UP_MS), 0);
	client.warm_up = received();
	forget_counts();
	begin = rte_rdtsc();
	flood_until(begin + cycles(command->seconds), 0);
	client.seconds = (double)(rte_rdtsc() - begin) / (double)rte_get_tsc_hz();
}

/* Frames at even distances. */
struct pace {
	uint64_t begin;
	double per_cycle;
	uint64_t tokens;	/* frames that were due */
	unsigned int turn;
};

/* A frame is sent when its time has come; those that are late go together. */
static void send_due(struct pace *pace)
{
	uint64_t now = rte_rdtsc() - pace->begin;
	uint64_t due = (uint64_t)((double)now * pace->per_cycle) - pace->tokens;
	struct flow *flow;

	if (!due)
		return;
	/* What finds no room is not made up for: it would be late for ever. */
	due = RTE_MIN(due, (uint64_t)BURST);
	flow = client.active[pace->turn++ % client.measured];
	flow->unsent += due - send_some(flow, (unsigned int)due, true);
	pace->tokens += due;
}

static void carry_load(struct pace *pace)
{
	send_due(pace);
	for (unsigned int i = 0; i < client.measured; i++)
		receive_some(client.active[i], true);
}

/* What is paced has its turn after every burst of what floods, so that it waits little for this loop. */
static void load(const struct command *command)
{
	struct pace pace = { .per_cycle = command->rate / (double)rte_get_tsc_hz() };
	uint64_t length = cycles(command->seconds);

	flood_until(rte_rdtsc() + milliseconds(WARM_UP_MS), client.measured);
	forget_counts();
	pace.begin = rte_rdtsc();
	while (rte_rdtsc() - pace.begin < length) {
		carry_load(&pace);
		for (unsigned int i = client.measured; i < client.active_count; i++) {
			flood_some(client.active[i]);
			carry_load(&pace);
		}
	}
	client.seconds = (double)length / (double)rte_get_tsc_hz();
}

static void sleep_us(unsigned int microseconds)
{
	struct timespec pause = {
		.tv_sec = microseconds / 1000000,
		.tv_nsec = (long)(microseconds % 1000000) * 1000,
	};

	if (microseconds)
		nanosleep(&pause, NULL);
}

/* `count` of them; gives up when nothing comes back at all. */
static void ping_flow(struct flow *flow, unsigned int count, unsigned int pause_us)
{
	for (unsigned int i = 0; i < count && flow->sent < flow->received + MAX_LOST; i++) {
		uint64_t received = flow->received, end;

		sleep_us(pause_us);
		end = rte_rdtsc() + milliseconds(PATIENCE_MS);
		send_some(flow, 1, true);
		while (flow->received == received && rte_rdtsc() < end)
			receive_some(flow, true);
	}
}

/* Back to back a backend that sleeps has to find out first: of that a tenth as many are not counted. */
static void ping(const struct command *command)
{
	struct flow *flow = client.active[0];
	uint64_t begin;

	if (!command->pause_us) {
		ping_flow(flow, command->count / 10, 0);
		client.warm_up = received();
		forget_counts();
	}
	begin = rte_rdtsc();
	ping_flow(flow, command->count, command->pause_us);
	client.seconds = (double)(rte_rdtsc() - begin) / (double)rte_get_tsc_hz();
}

static int by_value(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

static void print_quantile(const char *name, double share)
{
	uint32_t last = client.sample_count - 1;
	uint64_t sample = client.samples[(uint32_t)lround(share * last)];

	printf(", \"%s\": %.4f", name, (double)sample * 1e6 / (double)rte_get_tsc_hz());
}

static void print_latency(void)
{
	if (!client.sample_count)
		return;
	qsort(client.samples, client.sample_count, sizeof(*client.samples), by_value);
	print_quantile("p50_us", 0.5);
	print_quantile("p99_us", 0.99);
	print_quantile("p999_us", 0.999);
}

/* What was there when the time was up. */
struct counted {
	uint64_t received;
	uint64_t flooded;
};

/* What came later is not lost. Processor time is paid for what came earlier, too. */
static void print_result(const struct counted *counted)
{
	struct flow sum = { 0 };

	for (unsigned int i = 0; i < client.active_count; i++) {
		const struct flow *flow = client.active[i];

		sum.unsent += flow->unsent;
		sum.late += flow->late;
		sum.wrong += flow->wrong;
		sum.foreign += flow->foreign;
	}
	printf("{\"seconds\": %.6f, \"sent\": %" PRIu64 ", \"received\": %" PRIu64
	       ", \"arrived\": %" PRIu64 ", \"all_arrived\": %" PRIu64 ", \"flooded\": %" PRIu64
	       ", \"unsent\": %" PRIu64 ", \"late\": %" PRIu64 ", \"wrong\": %" PRIu64 ", \"foreign\": %" PRIu64,
	       client.seconds, sent(), counted->received, received(), client.warm_up + received(),
	       counted->flooded, sum.unsent, sum.late, sum.wrong, sum.foreign);
	print_latency();
	printf("}\n");
}

static int refuse(const char *why)
{
	printf("{\"error\": \"%s\"}\n", why);
	return -1;
}

static void choose(const struct command *command)
{
	client.active_count = client.measured = 0;
	for (unsigned int i = 0; i < client.flow_count; i++) {
		struct flow *flow = &client.flows[i];

		if (i / 2 >= command->pairs + command->flooding || i % 2 >= command->directions)
			continue;
		client.active[client.active_count++] = flow;
		if (i / 2 < command->pairs)
			client.measured++;
		flow->late = flow->wrong = 0;
	}
	client.stride = 1 + (uint64_t)(command->rate * command->seconds) / MAX_SAMPLES;
}

static int run(const struct command *command)
{
	struct counted counted;

	if (command->size < MAX_HEADERS + STAMP || command->size > UINT16_MAX)
		return refuse("size");
	if (command->directions < 1 || command->directions > 2)
		return refuse("directions");
	if (command->pairs < 1)
		return refuse("pairs");
	if (command->flooding && command->pairs + command->flooding > client.port_count / 2)
		return refuse("flooding");
	choose(command);
	for (unsigned int i = 0; i < client.active_count; i++)
		flow_load(client.active[i], command->size, &client.flow_options);
	forget_counts();
	client.warm_up = 0;
	if (!strcmp(command->name, "flood"))
		flood(command);
	else if (!strcmp(command->name, "load"))
		load(command);
	else if (!strcmp(command->name, "ping"))
		ping(command);
	else
		return refuse("command");
	counted = (struct counted){ received(), flooded() };
	drain(command);
	print_result(&counted);
	return 0;
}

static void parse_word(struct command *command, const char *word)
{
	/* A word that is not known changes nothing: sscanf stops at the first letter that differs. */
	(void)(sscanf(word, "size=%" SCNu32, &command->size) == 1 ||
	       sscanf(word, "seconds=%lf", &command->seconds) == 1 ||
	       sscanf(word, "rate=%lf", &command->rate) == 1 ||
	       sscanf(word, "directions=%u", &command->directions) == 1 ||
	       sscanf(word, "pairs=%u", &command->pairs) == 1 ||
	       sscanf(word, "flooding=%u", &command->flooding) == 1 ||
	       sscanf(word, "count=%u", &command->count) == 1 ||
	       sscanf(word, "pause_us=%u", &command->pause_us) == 1);
}

static struct command parse(char *line)
{
	struct command command = { .size = 64, .directions = 1, .pairs = MAX_FLOWS };
	char *rest = NULL, *word = strtok_r(line, " \n", &rest);

	snprintf(command.name, sizeof(command.name), "%s", word ? word : "");
	while ((word = strtok_r(NULL, " \n", &rest)))
		parse_word(&command, word);
	return command;
}

static void __attribute__((noreturn)) fail(const char *why)
{
	ports_explain();
	fprintf(stderr, "client: %s\n", why);
	exit(EXIT_FAILURE);
}

static void parse_options(int count, char **arguments)
{
	static const struct option options[] = {
		{ "gateway", required_argument, NULL, 'g' },
		{ "ring", required_argument, NULL, 'r' },
		{ "routed", no_argument, NULL, 'R' },
		{ "offloads", no_argument, NULL, 'o' },
		{ "mergeable", no_argument, NULL, 'm' },
		{ "calls", no_argument, NULL, 'c' },
		{ "tap", required_argument, NULL, 't' },
		{ 0 },
	};
	struct port_options *port = &client.port_options;
	struct rte_ether_addr mac = { 0 };
	int option;

	while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
		if (option == 'g' && !rte_ether_unformat_addr(optarg, &mac))
			memcpy(client.flow_options.gateway, mac.addr_bytes, sizeof(mac));
		else if (option == 'r')
			port->ring = (uint16_t)strtoul(optarg, NULL, 10);
		else if (option == 'R')
			client.flow_options.routed = true;
		else if (option == 'o')
			port->offloads = client.flow_options.offloads = true;
		else if (option == 'm')
			port->mergeable = true;
		else if (option == 'c')
			port->calls = true;
		else if (option == 't' && port->tap_count < MAX_PORTS)
			port->taps[port->tap_count++] = optarg;
		else
			fail("unknown option");
	}
}

static void open_all(void)
{
	int count = ports_open(client.ports, &client.port_options);

	if (count < 2)
		fail("the ports do not come up");
	client.port_count = (unsigned int)count;
	client.flow_count = client.port_count / 2 * 2;
	for (unsigned int i = 0; i < client.flow_count; i++) {
		if (flow_open(&client.flows[i], client.ports, i, i ^ 1, &client.flow_options))
			fail("too little memory");
	}
	client.samples = calloc(MAX_SAMPLES, sizeof(*client.samples));
	if (!client.samples)
		fail("too little memory");
}

static void greet(void)
{
	printf("{\"features\": [");
	for (unsigned int i = 0; i < client.port_count; i++)
		printf("%s%" PRIu64, i ? ", " : "", client.ports[i].features);
	printf("]}\n");
}

int main(int count, char **arguments)
{
	int used;
	char line[LINE];

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (ports_prepare())
		return EXIT_FAILURE;
	used = rte_eal_init(count, arguments);
	if (used < 0)
		fail("DPDK does not start");
	parse_options(count - used, arguments + used);
	open_all();
	greet();
	while (fgets(line, sizeof(line), stdin)) {
		struct command command = parse(line);

		run(&command);
	}
	return EXIT_SUCCESS;
}
