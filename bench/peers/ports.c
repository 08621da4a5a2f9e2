/*
 * Ports: DPDK's virtio-user, which is a driver for a vhost-user device, and taps of the kernel, which
 * take a system call for each frame.
 *
 * What a virtio-user port has agreed on with its device is not to be had from DPDK but by its log.
 */
#define _GNU_SOURCE
#include "client.h"

#include <fcntl.h>
#include <inttypes.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/if_tun.h>
#include <linux/virtio_net.h>

#include <rte_ethdev.h>

enum {
	RX_MBUFS = 4096,
	PAGE_ROOM = RTE_PKTMBUF_HEADROOM + 4096,
	LARGE_RX_MBUFS = 1536,
	LARGE_ROOM = UINT16_MAX,
	CACHE = 256,
	MAX_SEGMENTS = 8,
};

/*
 * Buffers to receive into: for large frames pages, as Linux gives when they can be merged, otherwise
 * one for a whole frame.
 */
static struct rte_mempool *rx_pool(unsigned int number, const struct port_options *options,
				   bool mergeable)
{
	unsigned int count = RX_MBUFS;
	uint16_t room = RTE_MBUF_DEFAULT_BUF_SIZE;
	char name[32];

	if (options->offloads) {
		count = mergeable ? RX_MBUFS : LARGE_RX_MBUFS;
		room = mergeable ? PAGE_ROOM : LARGE_ROOM;
	}
	snprintf(name, sizeof(name), "rx-%u", number);
	return rte_pktmbuf_pool_create(name, count, CACHE, 0, room, SOCKET_ID_ANY);
}

static FILE *log_read;	/* what DPDK has logged and nobody has read yet */

/* Keep what DPDK logs; to be called before it starts. Returns less than 0 if that cannot be. */
int ports_prepare(void)
{
	char path[] = "/tmp/mvirt-bench-log-XXXXXX";
	int fd = mkstemp(path);
	FILE *written = fd < 0 ? NULL : fdopen(fd, "w");

	log_read = fd < 0 ? NULL : fopen(path, "r");
	if (!written || !log_read)
		return -1;
	unlink(path);
	setvbuf(written, NULL, _IOLBF, 0);
	return rte_openlog_stream(written);
}

/* Show all that was logged. */
void ports_explain(void)
{
	char line[512];

	rewind(log_read);
	while (fgets(line, sizeof(line), log_read))
		fputs(line, stderr);
}

/* The features that the driver says next in the log; 0: none. */
static uint64_t next_features(void)
{
	static const char mark[] = "features after negotiate = ";
	char line[512];

	while (fgets(line, sizeof(line), log_read)) {
		const char *found = strstr(line, mark);

		if (found)
			return strtoull(found + strlen(mark), NULL, 16);
	}
	clearerr(log_read);
	return 0;
}

static int configure(struct port *port, const struct port_options *options)
{
	struct rte_eth_conf conf = { 0 };
	int error;

	if (options->offloads) {
		conf.rxmode.offloads = RTE_ETH_RX_OFFLOAD_TCP_LRO | RTE_ETH_RX_OFFLOAD_TCP_CKSUM |
				       RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
		conf.txmode.offloads = RTE_ETH_TX_OFFLOAD_TCP_TSO | RTE_ETH_TX_OFFLOAD_TCP_CKSUM |
				       RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
	}
	if (options->mergeable)
		conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_SCATTER;
	conf.intr_conf.rxq = options->calls;
	error = rte_eth_dev_configure(port->id, 1, 1, &conf);
	if (!error)
		error = rte_eth_rx_queue_setup(port->id, 0, options->ring,
					       (unsigned int)SOCKET_ID_ANY, NULL, port->pool);
	if (!error)
		error = rte_eth_tx_queue_setup(port->id, 0, options->ring,
					       (unsigned int)SOCKET_ID_ANY, NULL);
	if (!error)
		error = rte_eth_dev_start(port->id);
	return error || !options->calls ? error : rte_eth_dev_rx_intr_enable(port->id, 0);
}

/*
 * All ports of DPDK. Each has agreed on features when it was found, one after another, and may
 * do so again when it is configured, which is when it learns what is wanted of it.
 */
static int open_virtio(struct port *ports, const struct port_options *options)
{
	uint16_t count = rte_eth_dev_count_avail();

	for (uint16_t i = 0; i < count; i++)
		ports[i] = (struct port){ .tap = -1, .id = i, .features = next_features() };
	for (uint16_t i = 0; i < count; i++) {
		uint64_t features;

		ports[i].pool = rx_pool(i, options, options->mergeable);
		if (!ports[i].pool || configure(&ports[i], options))
			return -1;
		while ((features = next_features()))
			ports[i].features = features;
	}
	return count;
}

static int open_tap(const char *name, bool offloads)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int size = sizeof(struct virtio_net_hdr);
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request) || ioctl(fd, TUNSETVNETHDRSZ, &size) ||
	    ioctl(fd, TUNSETOFFLOAD, offloads ? TUN_F_CSUM | TUN_F_TSO4 : 0))
		return -1;
	return fd;
}

static int open_taps(struct port *ports, const struct port_options *options)
{
	for (unsigned int i = 0; i < options->tap_count; i++) {
		ports[i] = (struct port){
			.tap = open_tap(options->taps[i], options->offloads),
			.id = (uint16_t)i,
		};
		ports[i].pool = rx_pool(i, options, false);
		if (ports[i].tap < 0 || !ports[i].pool)
			return -1;
	}
	return (int)options->tap_count;
}

/* Returns how many there are, or less than 0. */
int ports_open(struct port *ports, const struct port_options *options)
{
	return options->tap_count ? open_taps(ports, options) : open_virtio(ports, options);
}

static struct virtio_net_hdr header_of(const struct rte_mbuf *frame)
{
	struct virtio_net_hdr header = { .gso_type = VIRTIO_NET_HDR_GSO_NONE };

	if (!(frame->ol_flags & RTE_MBUF_F_TX_TCP_SEG))
		return header;
	header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	header.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
	header.gso_size = frame->tso_segsz;
	header.hdr_len = MAX_HEADERS;
	header.csum_start = ETHER + IPV4;
	header.csum_offset = 16;
	return header;
}

static bool tap_write(int tap, struct rte_mbuf *frame)
{
	struct virtio_net_hdr header = header_of(frame);
	struct iovec parts[1 + MAX_SEGMENTS] = { { &header, sizeof(header) } };
	int count = 1;

	for (struct rte_mbuf *part = frame; part; part = part->next)
		parts[count++] = (struct iovec){ rte_pktmbuf_mtod(part, void *), part->data_len };
	if (writev(tap, parts, count) < 0)
		return false;
	rte_pktmbuf_free(frame);
	return true;
}

static struct rte_mbuf *tap_read(const struct port *port)
{
	struct rte_mbuf *frame = rte_pktmbuf_alloc(port->pool);
	struct virtio_net_hdr header;
	struct iovec parts[2] = { { &header, sizeof(header) } };
	ssize_t length;

	if (!frame)
		return NULL;
	parts[1] = (struct iovec){ rte_pktmbuf_mtod(frame, void *), rte_pktmbuf_tailroom(frame) };
	length = readv(port->tap, parts, 2) - (ssize_t)sizeof(header);
	if (length < 0) {
		rte_pktmbuf_free(frame);
		return NULL;
	}
	frame->pkt_len = (uint32_t)length;
	frame->data_len = (uint16_t)length;
	if (header.gso_type == VIRTIO_NET_HDR_GSO_TCPV4) {
		frame->ol_flags |= RTE_MBUF_F_RX_LRO;
		frame->tso_segsz = header.gso_size;
	}
	return frame;
}

uint16_t port_send(const struct port *port, struct rte_mbuf **frames, uint16_t count)
{
	uint16_t sent = 0;

	if (port->tap < 0)
		return rte_eth_tx_burst(port->id, 0, frames, count);
	while (sent < count && tap_write(port->tap, frames[sent]))
		sent++;
	return sent;
}

uint16_t port_receive(const struct port *port, struct rte_mbuf **frames, uint16_t count)
{
	uint16_t received = 0;

	if (port->tap < 0)
		return rte_eth_rx_burst(port->id, 0, frames, count);
	while (received < count && (frames[received] = tap_read(port)))
		received++;
	return received;
}
