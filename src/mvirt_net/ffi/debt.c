/*
 * Time that the kernel takes for one NIC, and everybody waits.
 *
 * Theory of operation. Signalling an eventfd, or taking its count, is a microsecond's work, but the kernel
 * goes through all who wait for it, and the frontend may have any number wait: hundreds of thousands are
 * some 0.1 s. Nobody can tell before. So whoever has made it slow owes: a hundred times as long nothing slow is to be
 * done for that port, which leaves it a hundredth of everybody's time, whatever its frontends do with
 * rings and connections meanwhile.
 *
 * A thread can also be interrupted just there, on a busy machine many times a second. Processor time
 * tells the two apart, but costs a system call. So a first slow signal only raises a suspicion, also
 * for a hundred times as long; in that time processor time is measured, and it is what is owed. Who
 * gets that far twice before it has paid is not signalled to until it has: its rings break, or lose the
 * eventfd that the kick came by. In all that
 * is a hundredth for suspicions and, with two slow signals more for two hundred times their length, at
 * most a fiftieth.
 */
#include "core.h"

#include <errno.h>

enum {
	SLOW_NS = 5 * 1000 * 1000,
	SHARE = 100,		/* one in so many nanoseconds */
	MAX_SLOW_CALLS = 2,	/* for which it owes, before nothing is signalled any more */
};

static uint64_t load(const uint64_t *field)
{
	return __atomic_load_n(field, __ATOMIC_RELAXED);
}

static void store(uint64_t *field, uint64_t value)
{
	__atomic_store_n(field, value, __ATOMIC_RELAXED);
}

static void owe(struct mv_debt *debt, uint64_t now, uint64_t ns)
{
	uint64_t due = load(&debt->due_until);

	if (due <= now) {
		store(&debt->slow_calls, 0);
		due = now;
	}
	store(&debt->due_until, due + SHARE * ns);
}

bool mv_debt_is_too_high(const struct mv_debt *debt)
{
	return load(&debt->slow_calls) >= MAX_SLOW_CALLS && mv_now_ns() < load(&debt->due_until);
}

static bool is_suspect(const struct mv_debt *debt, uint64_t now)
{
	return now < load(&debt->suspect_until) || now < load(&debt->due_until);
}

typedef int event_call(int fd);

/* As `call`, and how long it took this thread, not others in its place. */
static int call_timed(struct mv_debt *debt, int fd, event_call *call)
{
	uint64_t cpu = mv_thread_ns();
	int r = call(fd);

	cpu = mv_thread_ns() - cpu;
	if (cpu > SLOW_NS) {
		owe(debt, mv_now_ns(), cpu);
		mv_count_shared(&debt->slow_calls, 1);
		mv_count_shared(&debt->slow_ever, 1);
	}
	return r;
}

static int call_on_debt(struct mv_debt *debt, int fd, event_call *call)
{
	uint64_t begin = mv_now_ns(), end;
	int r;

	if (mv_debt_is_too_high(debt))
		return -EBUSY;
	if (is_suspect(debt, begin))
		return call_timed(debt, fd, call);
	r = call(fd);
	end = mv_now_ns();
	if (end - begin > SLOW_NS)
		store(&debt->suspect_until, end + SHARE * (end - begin));
	return r;
}

int mv_debt_signal(struct mv_debt *debt, int fd)
{
	return call_on_debt(debt, fd, mv_event_write);
}

int mv_port_take_kick(mv_port *port, int fd)
{
	return call_on_debt(&port->debt, fd, mv_event_read);
}

uint64_t mv_port_owes_ns(const mv_port *port)
{
	uint64_t now = mv_now_ns(), due = load(&port->debt.due_until);

	return due > now ? due - now : 0;
}

void mv_port_charge(mv_port *port, uint64_t ns)
{
	if (port)
		owe(&port->debt, mv_now_ns(), ns);
}

uint64_t mv_port_due_ns(const mv_port *port)
{
	return load(&port->debt.due_until);
}

void mv_port_settle(mv_port *port, uint64_t due_ns)
{
	uint64_t now = mv_now_ns(), due = load(&port->debt.due_until);

	if (due <= due_ns) {
		store(&port->debt.due_until, 0);
		store(&port->debt.slow_calls, 0);
	} else if (now < due_ns) {
		/* By our clock it has not waited yet; what is left begins now. */
		store(&port->debt.due_until, now + due - due_ns);
	}
}
