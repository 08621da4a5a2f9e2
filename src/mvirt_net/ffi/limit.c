/*
 * How much one guest may have of what all guests share: the time of the gateway's services, and ICMP
 * errors.
 *
 * All services run in one thread, so a guest that floods the gateway with questions costs everybody
 * else. What is too much is dropped before that thread sees it, for there it takes as long to refuse a
 * frame as to answer an ARP request. Work is counted as it was measured, so that one allowance serves
 * questions of very different price.
 *
 * Once an allowance is used up there may be a pause, until enough is saved up for several frames: else
 * a flood would wake up the thread for each that there is time for.
 */
#include "core.h"

enum {
	US = 1000,			/* nanoseconds */
	/* What a nanosecond of work has to be saved up for. */
	SHARE = 1000 * 1000 / MV_WORK_RATE,
	/* Bytes of the longest frame that costs no more than its kind does: an IPv4 DHCP message. */
	ORDINARY_SIZE = 350,
};

/* Nanoseconds of work. */
static const struct {
	uint32_t ordinary;	/* for one frame of ordinary size, with its way to the service and back */
	uint32_t per_byte;	/* more, of the worst that a guest can write into it: a message full of
				 * options, or one that is copied and summed up */
} works[] = {
	[MV_PUNT_ARP] = { 4 * US, 10 },
	[MV_PUNT_DHCPV4] = { 100 * US, 700 },
	[MV_PUNT_ICMPV4] = { 8 * US, 5 },
	[MV_PUNT_NDP] = { 12 * US, 10 },
	[MV_PUNT_ICMPV6] = { 9 * US, 10 },
	[MV_PUNT_DHCPV6] = { 33 * US, 300 },
	[MV_PUNT_ICMP_ERROR] = { 9 * US, 0 },
};

uint64_t mv_punt_work(unsigned int kind, uint32_t length)
{
	uint64_t more = length > ORDINARY_SIZE ? length - ORDINARY_SIZE : 0;

	return works[kind].ordinary + more * works[kind].per_byte;
}

_Static_assert(SHARE * MV_WORK_RATE == 1000 * 1000, "a rate that can be counted in whole ns");

static void begin(struct mv_allowance *allowance, uint64_t most, uint64_t pause)
{
	*allowance = (struct mv_allowance){ .most = most, .pause = pause, .saved = most };
}

static void save(struct mv_allowance *allowance, uint64_t now)
{
	uint64_t lacking = allowance->most - allowance->saved;
	uint64_t passed = now > allowance->saved_at ? now - allowance->saved_at : 0;

	allowance->saved += passed < lacking ? passed : lacking;
	allowance->saved_at += passed;
}

/* Spend so much; false, and nothing is spent: there is less, or the pause is not over. */
static bool spend(struct mv_allowance *allowance, uint64_t price, uint64_t now)
{
	save(allowance, now);
	if (allowance->saved < price || (allowance->pausing && allowance->saved < allowance->pause)) {
		allowance->pausing = true;
		return false;
	}
	allowance->pausing = false;
	allowance->saved -= price;
	return true;
}

void mv_limits_begin(struct mv_limits *limits)
{
	pthread_mutex_init(&limits->lock, NULL);
	begin(&limits->work, (uint64_t)MV_WORK_BURST * US * SHARE, (uint64_t)MV_WORK_PAUSE * US * SHARE);
	begin(&limits->errors, (uint64_t)MV_ERROR_BURST * MV_ERROR_INTERVAL_NS, 0);
}

void mv_limits_end(struct mv_limits *limits)
{
	pthread_mutex_destroy(&limits->lock);
}

bool mv_may_punt(struct mv_limits *limits, enum mv_punt_kind kind, uint32_t length, uint64_t now)
{
	uint64_t price = mv_punt_work(kind, length) * SHARE;
	bool may;

	pthread_mutex_lock(&limits->lock);
	may = (kind != MV_PUNT_ICMP_ERROR || spend(&limits->errors, MV_ERROR_INTERVAL_NS, now)) &&
	      spend(&limits->work, price, now);
	pthread_mutex_unlock(&limits->lock);
	return may;
}
