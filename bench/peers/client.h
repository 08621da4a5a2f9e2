/*
 * The client of every backend: sends frames into some ports, receives them from others, and looks
 * at what comes. See client.c.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include <rte_mbuf.h>

enum {
	BURST = 32,
	MAX_PORTS = 32,		/* as many as DPDK has */
	ETHER = 14,
	IPV4 = 20,
	UDP = 8,
	TCP = 20,
	MAX_HEADERS = ETHER + IPV4 + TCP,
	STAMP = 8,		/* bytes after the headers that may say when a frame was sent */
	SEGMENT_PAYLOAD = 1448,	/* what TCP puts into 1500 bytes, time stamps included */
	GENERATIONS = 8,	/* of frames that can be told apart */
};

/* ports.c: a virtio-user port of DPDK, or a tap of the kernel. */

struct port {
	int tap;		/* -1: a port of DPDK */
	uint16_t id;
	uint64_t features;	/* that driver and device have agreed on */
	struct rte_mempool *pool;	/* to receive into */
};

struct port_options {
	const char *taps[MAX_PORTS];
	unsigned int tap_count;
	bool mergeable;
	bool offloads;
	bool calls;		/* have the device call after each batch, as a driver that sleeps */
	uint16_t ring;		/* entries */
};

int ports_prepare(void);
void ports_explain(void);
int ports_open(struct port *ports, const struct port_options *options);
uint16_t port_send(const struct port *port, struct rte_mbuf **frames, uint16_t count);
uint16_t port_receive(const struct port *port, struct rte_mbuf **frames, uint16_t count);

/* frames.c: what is sent, and what must come out of the other end. */

/* What has to arrive. */
struct look {
	uint32_t size;
	uint8_t head[MAX_HEADERS];
};

struct flow {
	const struct port *from, *to;
	struct rte_mempool *heads, *tails;	/* an mbuf in use holds its part of the frame */
	uint32_t generation;	/* of frames: how often it was loaded */
	uint32_t size;
	uint32_t headers;	/* bytes */
	bool large;		/* to be segmented */
	uint8_t sent_head[MAX_HEADERS];
	struct look looks[GENERATIONS];		/* of the last generations, by what frames call them */
	uint64_t sent, received;
	uint64_t unsent;	/* of a load: the port had no room when they were due */
	uint64_t late;		/* of an earlier generation */
	uint64_t wrong;		/* ours, but not as they should be */
	uint64_t foreign;	/* not IPv4: somebody looks for neighbours */
};

struct flow_options {
	uint8_t gateway[6];
	bool routed;
	bool offloads;
};

int flow_open(struct flow *flow, const struct port *ports, unsigned int from, unsigned int to,
	      const struct flow_options *options);
void flow_load(struct flow *flow, uint32_t size, const struct flow_options *options);
unsigned int flow_make(struct flow *flow, struct rte_mbuf **frames, unsigned int count);
void flow_stamp(const struct flow *flow, struct rte_mbuf *frame, uint64_t now);
uint64_t flow_stamp_of(const struct flow *flow, const struct rte_mbuf *frame);
bool flow_check(struct flow *flow, const struct rte_mbuf *frame, bool thoroughly);

#endif
