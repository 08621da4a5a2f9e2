/* The bytes of a descriptor chain: guest memory in pieces, each within its region. */
#include "core.h"

#include <string.h>

struct mv_reader mv_reader_at(const struct mv_chain *chain, uint32_t skip)
{
	struct mv_reader reader = { .chain = chain, .offset = skip };

	while (reader.segment < chain->n_segments &&
	       reader.offset >= chain->segments[reader.segment].length)
		reader.offset -= chain->segments[reader.segment++].length;
	return reader;
}

/* The next piece, of at most `length` bytes; NULL at the end of the chain. */
static uint8_t *next_piece(struct mv_reader *reader, uint32_t length, uint32_t *run)
{
	const struct mv_segment *segment;
	uint8_t *piece;

	if (!reader->chain || reader->segment == reader->chain->n_segments)
		return NULL;
	segment = &reader->chain->segments[reader->segment];
	piece = segment->host + reader->offset;
	*run = segment->length - reader->offset;
	if (*run > length) {
		*run = length;
		reader->offset += length;
	} else {
		/* Empty segments do not exist, so each call makes progress. */
		reader->segment++;
		reader->offset = 0;
	}
	return piece;
}

/* Nearly all of what is read and written at once lies in the first piece; NULL: this does not. */
static uint8_t *in_first_piece(const struct mv_chain *chain, uint32_t skip, uint32_t length)
{
	if (chain->n_segments == 0 || (uint64_t)skip + length > chain->segments[0].length)
		return NULL;
	return chain->segments[0].host + skip;
}

uint32_t mv_reader_read(struct mv_reader *reader, void *into, uint32_t length)
{
	uint32_t done = 0, run;
	const uint8_t *piece;

	for (; done < length && (piece = next_piece(reader, length - done, &run)); done += run)
		memcpy((uint8_t *)into + done, piece, run);
	mv_load_once();
	return done;
}

uint32_t mv_chain_read(const struct mv_chain *chain, uint32_t skip, void *into, uint32_t length)
{
	const uint8_t *piece = in_first_piece(chain, skip, length);
	struct mv_reader reader;

	if (piece) {
		memcpy(into, piece, length);
		mv_load_once();
		return length;
	}
	reader = mv_reader_at(chain, skip);
	return mv_reader_read(&reader, into, length);
}

uint32_t mv_chain_write(const struct mv_chain *chain, uint32_t skip, const void *from,
			uint32_t length)
{
	uint8_t *piece = in_first_piece(chain, skip, length);
	struct mv_reader reader;
	uint32_t done = 0, run;

	if (piece) {
		memcpy(piece, from, length);
		return length;
	}
	reader = mv_reader_at(chain, skip);
	for (; done < length && (piece = next_piece(&reader, length - done, &run)); done += run)
		memcpy(piece, (const uint8_t *)from + done, run);
	return done;
}

void mv_reader_move(struct mv_reader *reader, uint8_t *into, uint32_t length)
{
	uint32_t done = 0, run;
	const uint8_t *piece;

	for (; done < length && (piece = next_piece(reader, length - done, &run)); done += run)
		memmove(into + done, piece, run);
}

void mv_reader_copy(struct mv_reader *from, const struct mv_chain *to, uint32_t skip,
		    uint32_t length)
{
	struct mv_reader into = mv_reader_at(to, skip);
	uint32_t run, part;
	const uint8_t *source;
	uint8_t *target;

	for (; length > 0 && (source = next_piece(from, length, &run)); length -= run)
		for (uint32_t done = 0; done < run; done += part) {
			target = next_piece(&into, run - done, &part);
			if (!target)
				return;
			/* Two guests may share memory, and then these may be the same bytes. */
			memmove(target, source + done, part);
		}
}

void mv_reader_skip(struct mv_reader *reader, uint32_t length)
{
	uint32_t run;

	for (; length > 0 && next_piece(reader, length, &run); length -= run)
		;
}

void mv_sum_read(struct mv_sum *sum, struct mv_reader *from, uint32_t length)
{
	uint32_t run;
	const uint8_t *piece;

	for (; length > 0 && (piece = next_piece(from, length, &run)); length -= run)
		mv_sum_add(sum, piece, run);
}
