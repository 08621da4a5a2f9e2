/*
 * Captures: copies of the frames of some ports, as blocks of a pcapng file.
 *
 * Theory of operation. A capture taps ports; wherever a frame of a tapped port has met its fate, a copy
 * of it is put into the capture's ring, in the form that it will have in the file (an Enhanced Packet
 * Block: draft-ietf-opsawg-pcapng, 4.3), with its direction and, if it was dropped, why. Someone else
 * takes whole blocks out and writes them. The two never wait for each other: a frame that finds no room
 * is not recorded, and the next block of its interface says how many those were.
 *
 * What is copied: the bytes that the port's driver has put into private memory before they were judged
 * (headers, and all of a frame that has waited or was made here), and of the rest what is in the
 * sender's memory at that moment. A guest that writes there meanwhile can have another payload in the
 * file than in the receiver's buffer, never another header.
 *
 * Cost. While a port is tapped it takes no part in the short way (express.c), and not tapped is what
 * that looks for once in a turn. So a port without a capture pays nothing for each packet that goes
 * there, and one look at a field for each of the others.
 *
 * Taps of a port belong to all of its ring locks together: to look at them any will do. Several threads
 * may record at once, for a port or for several, so there is a lock around the copy. Time is read
 * under it: blocks are in the order of their time.
 *
 * Barriers, by letter:
 *   P  release of `head` after a block: with the acquire of who takes.
 *   T  release of `tail` after the copy out of the ring: with the acquire of who looks for room.
 *   W  fences between the store of one and the load of the other: of the two that meet, one sees what
 *      the other has done, so either the block is taken or the taker is woken.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	PACKET_BLOCK = 6,
	OPTION_END = 0,
	OPTION_COMMENT = 1,
	OPTION_FLAGS = 2,
	OPTION_LOST = 4,

	OPTION_HEADER = 4,
	TRAILER = 4,		/* the length once more */
};

struct mv_tap {
	mv_capture *capture;
	mv_port *port;		/* NULL: not any more */
	uint32_t interface;	/* its number in the file */
	uint64_t seen;		/* atomic */
	uint64_t lost;		/* of them, that come into no file; atomic */
	uint64_t untold;	/* for which there was no room since the last block */
};

struct mv_capture {
	pthread_mutex_t lock;		/* of those who record */
	uint64_t head;			/* bytes that were ever put in; atomic */
	_Alignas(MV_CACHE_LINE) uint64_t tail;	/* and taken out; atomic */
	_Alignas(MV_CACHE_LINE) size_t room;	/* a power of two */
	uint8_t *ring;
	uint32_t snaplen;
	int event_fd;
	struct mv_tap **taps;		/* by interface */
	unsigned int interfaces;
	unsigned int places;		/* of `taps` */
	struct mv_comments comments;
};

/* How a packet block begins. */
struct front {
	uint32_t type;
	uint32_t total;
	uint32_t interface;
	uint32_t time_high;
	uint32_t time_low;
	uint32_t captured;
	uint32_t length;
};

/* And what follows the packet: padding, options, and once more the length. */
struct back {
	uint32_t size;
	uint8_t bytes[3 + OPTION_HEADER + 4 + OPTION_HEADER + 8 + OPTION_HEADER + MV_COMMENT +
		      OPTION_HEADER + TRAILER];
};

_Static_assert(sizeof(struct front) == 28, "4.3 of the draft");
_Static_assert(MV_COMMENT % 4 == 0, "options are padded");

/* ---- the ring ---- */

/* Where a position is, and in *run how many bytes (1..*run) lie there side by side. */
static uint8_t *ring_at(const mv_capture *capture, uint64_t position, size_t *run)
{
	size_t offset = (size_t)(position & (capture->room - 1));

	if (*run > capture->room - offset)
		*run = capture->room - offset;
	return capture->ring + offset;
}

static uint64_t put(const mv_capture *capture, uint64_t position, const void *from, size_t length)
{
	const uint8_t *bytes = from;

	while (length > 0) {
		size_t run = length;
		uint8_t *to = ring_at(capture, position, &run);

		memcpy(to, bytes, run);
		position += run;
		bytes += run;
		length -= run;
	}
	return position;
}

static uint64_t put_rest(const mv_capture *capture, uint64_t position, struct mv_reader rest,
			 uint32_t length)
{
	while (length > 0) {
		size_t run = length;
		uint8_t *to = ring_at(capture, position, &run);
		uint32_t n = mv_reader_read(&rest, to, (uint32_t)run);

		/* Where there is less than the frame says, older frames must not show through. */
		memset(to + n, 0, run - n);
		position += run;
		length -= (uint32_t)run;
	}
	return position;
}

size_t mv_capture_take(mv_capture *capture, uint8_t *buffer, size_t size)
{
	uint64_t tail = capture->tail, head;
	size_t n = 0, done = 0;

	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* W */
	head = __atomic_load_n(&capture->head, __ATOMIC_ACQUIRE); /* P */
	while (tail + n < head) {
		size_t run = 4;
		uint32_t total = mv_load32(ring_at(capture, tail + n + 4, &run));

		if (n + total > size)
			break;
		n += total;
	}
	while (done < n) {
		size_t run = n - done;
		const uint8_t *from = ring_at(capture, tail + done, &run);

		memcpy(buffer + done, from, run);
		done += run;
	}
	__atomic_store_n(&capture->tail, tail + n, __ATOMIC_RELEASE); /* T */
	return n;
}

bool mv_capture_is_empty(const mv_capture *capture)
{
	return capture->tail == __atomic_load_n(&capture->head, __ATOMIC_ACQUIRE);
}

/* ---- blocks ---- */

static void add_bytes(struct back *back, const void *from, uint32_t length)
{
	memcpy(back->bytes + back->size, from, length);
	back->size += length;
}

static void add_option(struct back *back, uint16_t code, const void *value, uint16_t length)
{
	static const uint8_t zeros[3];
	uint16_t header[2] = { code, length };

	add_bytes(back, header, sizeof(header));
	add_bytes(back, value, length);
	add_bytes(back, zeros, -length & 3U);
}

static void make_back(struct back *back, const struct mv_tap *tap, enum mv_way way, int reason,
		      uint32_t captured)
{
	uint32_t flags = way;

	memset(back->bytes, 0, 4);
	back->size = -captured & 3U;
	add_option(back, OPTION_FLAGS, &flags, sizeof(flags));
	if (tap->untold > 0)
		add_option(back, OPTION_LOST, &tap->untold, sizeof(tap->untold));
	if (reason >= 0 && reason < MV_DROP_REASONS) {
		const char *comment = tap->capture->comments.text[reason];

		add_option(back, OPTION_COMMENT, comment, (uint16_t)strnlen(comment, MV_COMMENT));
	}
	add_option(back, OPTION_END, "", 0);
}

static uint64_t wall_clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

/* Whether who takes has taken all before, so that it may be asleep. */
static bool put_block(struct mv_tap *tap, struct front *front, struct back *back,
		      const struct mv_frame *frame)
{
	mv_capture *capture = tap->capture;
	uint64_t before = capture->head, position;
	uint32_t head = frame->head_length < front->captured ? frame->head_length : front->captured;

	add_bytes(back, &front->total, sizeof(front->total));
	position = put(capture, before, front, sizeof(*front));
	position = put(capture, position, frame->head, head);
	position = put_rest(capture, position, frame->rest, front->captured - head);
	position = put(capture, position, back->bytes, back->size);
	__atomic_store_n(&capture->head, position, __ATOMIC_RELEASE); /* P */
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* W */
	return __atomic_load_n(&capture->tail, __ATOMIC_RELAXED) == before;
}

/* Under the capture's lock; whether to wake who takes. */
static bool record(struct mv_tap *tap, enum mv_way way, int reason, const struct mv_frame *frame)
{
	mv_capture *capture = tap->capture;
	uint64_t now = wall_clock_ns();
	struct front front = {
		.type = PACKET_BLOCK,
		.interface = tap->interface,
		.time_high = (uint32_t)(now >> 32),
		.time_low = (uint32_t)now,
		.captured = frame->length < capture->snaplen ? frame->length : capture->snaplen,
		.length = frame->length,
	};
	struct back back;

	make_back(&back, tap, way, reason, front.captured);
	front.total = (uint32_t)sizeof(front) + front.captured + back.size + TRAILER;
	mv_count(&tap->seen, 1);
	if (capture->room - (capture->head - __atomic_load_n(&capture->tail, __ATOMIC_ACQUIRE)) <
	    front.total) { /* T */
		mv_count(&tap->lost, 1);
		tap->untold++;
		return false;
	}
	tap->untold = 0;
	return put_block(tap, &front, &back, frame);
}

void mv_record_frame(mv_port *port, enum mv_way way, int reason, const struct mv_frame *frame)
{
	for (unsigned int i = 0; i < MV_MAX_TAPS && port->taps[i]; i++) {
		mv_capture *capture = port->taps[i]->capture;
		bool wake;

		pthread_mutex_lock(&capture->lock);
		wake = record(port->taps[i], way, reason, frame);
		pthread_mutex_unlock(&capture->lock);
		if (wake)
			(void)mv_event_write(capture->event_fd);
	}
}

/* ---- control ---- */

mv_capture *mv_capture_new(size_t room, uint32_t snaplen, int event_fd,
			   const struct mv_comments *comments)
{
	mv_capture *capture = aligned_alloc(MV_CACHE_LINE, sizeof(*capture));

	if (!capture)
		return NULL;
	memset(capture, 0, sizeof(*capture));
	capture->room = MV_CAPTURE_ROOM;
	while (capture->room < room)
		capture->room *= 2;
	capture->ring = malloc(capture->room);
	if (!capture->ring) {
		free(capture);
		return NULL;
	}
	pthread_mutex_init(&capture->lock, NULL);
	capture->snaplen = snaplen < MV_MAX_FRAME ? snaplen : MV_MAX_FRAME;
	capture->event_fd = event_fd;
	capture->comments = *comments;
	return capture;
}

void mv_capture_free(mv_capture *capture)
{
	if (!capture)
		return;
	for (unsigned int i = 0; i < capture->interfaces; i++) {
		struct mv_tap *tap = capture->taps[i];

		if (tap->port)
			mv_port_remove_tap(tap->port, tap);
		free(tap);
	}
	free(capture->taps);
	pthread_mutex_destroy(&capture->lock);
	free(capture->ring);
	free(capture);
}

static struct mv_tap *find_tap(const mv_capture *capture, const mv_port *port)
{
	for (unsigned int i = 0; i < MV_MAX_TAPS && port->taps[i]; i++)
		if (port->taps[i]->capture == capture)
			return port->taps[i];
	return NULL;
}

/* Room for one more interface. */
static bool make_place(mv_capture *capture)
{
	unsigned int places = capture->places ? 2 * capture->places : 8;
	struct mv_tap **taps;

	if (capture->interfaces < capture->places)
		return true;
	taps = realloc(capture->taps, places * sizeof(*taps));
	if (!taps)
		return false;
	capture->taps = taps;
	capture->places = places;
	return true;
}

int mv_capture_tap(mv_capture *capture, mv_port *port)
{
	struct mv_tap *tap;

	if (find_tap(capture, port))
		return -EEXIST;
	tap = make_place(capture) ? calloc(1, sizeof(*tap)) : NULL;
	if (!tap)
		return -ENOMEM;
	tap->capture = capture;
	tap->port = port;
	tap->interface = capture->interfaces;
	if (!mv_port_add_tap(port, tap)) {
		free(tap);
		return -ENOSPC;
	}
	capture->taps[capture->interfaces] = tap;
	return (int)capture->interfaces++;
}

void mv_capture_untap(mv_capture *capture, mv_port *port)
{
	struct mv_tap *tap = find_tap(capture, port);

	if (!tap)
		return;
	mv_port_remove_tap(port, tap);
	tap->port = NULL;
}

/* ---- counts ---- */

void mv_capture_lose(mv_capture *capture, unsigned int interface, uint64_t frames)
{
	pthread_mutex_lock(&capture->lock);
	if (interface < capture->interfaces)
		mv_count(&capture->taps[interface]->lost, frames);
	pthread_mutex_unlock(&capture->lock);
}

void mv_capture_lose_waiting(mv_capture *capture)
{
	uint64_t tail = capture->tail;

	pthread_mutex_lock(&capture->lock);
	while (tail < capture->head) {
		size_t run = 4;
		uint32_t interface = mv_load32(ring_at(capture, tail + 8, &run));

		mv_count(&capture->taps[interface]->lost, 1);
		tail += mv_load32(ring_at(capture, tail + 4, &run));
	}
	__atomic_store_n(&capture->tail, tail, __ATOMIC_RELEASE); /* T */
	pthread_mutex_unlock(&capture->lock);
}

static void add_counts(const struct mv_tap *tap, uint64_t *seen, uint64_t *lost)
{
	*seen += __atomic_load_n(&tap->seen, __ATOMIC_RELAXED);
	*lost += __atomic_load_n(&tap->lost, __ATOMIC_RELAXED);
}

void mv_capture_counts(const mv_capture *capture, unsigned int interface, uint64_t *seen,
		       uint64_t *lost)
{
	*seen = *lost = 0;
	if (interface < capture->interfaces)
		add_counts(capture->taps[interface], seen, lost);
}

void mv_capture_totals(const mv_capture *capture, uint64_t *seen, uint64_t *lost)
{
	*seen = *lost = 0;
	for (unsigned int i = 0; i < capture->interfaces; i++)
		add_counts(capture->taps[i], seen, lost);
}
