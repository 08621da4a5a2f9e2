/*
 * Guest memory can vanish: a frontend that shortens its file makes every later access to the lost
 * part a SIGBUS, which would end the daemon and with it the network of all other VMs.
 *
 * Theory of operation. Every mapping stands in a table that the signal handler can search without
 * a lock. A SIGBUS inside one of them is answered by mapping zero pages over the *whole* mapping:
 * the interrupted instruction is repeated and goes on with zeros, which all code here takes for
 * just another hostile content. The handler then adds 1 to the eventfd of the connection, which
 * ends itself at its next turn. Nothing is unwound, no lock can be left held, and it costs nothing
 * as long as nothing happens. Any other SIGBUS is passed on to whoever was installed before.
 *
 * Where the whole mapping cannot be replaced (vm.overcommit_memory=2 counts all of it), only the page
 * is: then each lost page costs a signal, until the connection is gone.
 *
 * A slot's fields are those of one moment: `generation` is odd while they are changed, and different
 * afterwards. A thread that is hit uses the mapping, so the slot that it looks for stands still;
 * one that changes meanwhile is another's.
 */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_WATCHES = 16384 };

struct watch {
	bool taken;		/* under table_lock */
	_Atomic unsigned int generation;
	_Atomic uintptr_t start;
	_Atomic size_t size;
	_Atomic size_t page;
	_Atomic int fault_fd;
};

/* A copy of a watch's fields. */
struct range {
	uintptr_t start;
	size_t size;
	size_t page;
	int fault_fd;
};

static struct watch watches[MAX_WATCHES];
static _Atomic unsigned int n_watches;	/* slots ever used */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;
static volatile sig_atomic_t passed_on;

/* All accesses are in their order (sequentially consistent): it happens seldom enough. */
static void write_watch(struct watch *watch, const struct range *range)
{
	watch->generation++;
	watch->start = range->start;
	watch->size = range->size;
	watch->page = range->page;
	watch->fault_fd = range->fault_fd;
	watch->generation++;
}

/* False: it is being changed. */
static bool read_watch(struct watch *watch, struct range *range)
{
	unsigned int before = watch->generation;

	range->start = watch->start;
	range->size = watch->size;
	range->page = watch->page;
	range->fault_fd = watch->fault_fd;
	return before % 2 == 0 && watch->generation == before;
}

static bool put_zeros(uintptr_t start, size_t size)
{
	return mmap((void *)start, size, PROT_READ | PROT_WRITE,
		    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

static bool replace(const struct range *range, uintptr_t addr)
{
	static const uint64_t one = 1;
	ssize_t written;

	if (!put_zeros(range->start, range->size) &&
	    !put_zeros(addr - (addr - range->start) % range->page, range->page))
		return false;
	/* A full counter is as good as one more; there is nobody to tell of other errors. */
	written = write(range->fault_fd, &one, sizeof(one));
	(void)written;
	return true;
}

static bool handle(uintptr_t addr)
{
	unsigned int n = atomic_load_explicit(&n_watches, memory_order_acquire);
	struct range range;

	for (unsigned int i = 0; i < n; i++)
		if (read_watch(&watches[i], &range) && addr - range.start < range.size)
			return replace(&range, addr);
	return false;
}

static bool has_handler(const struct sigaction *action)
{
	return action->sa_flags & SA_SIGINFO ||
	       (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

/*
 * To whoever was there before. One that sends the signal again when it is done (Python's
 * faulthandler does) means the default action by that.
 */
static void pass_on(int signo, siginfo_t *info, void *context)
{
	bool sent = info->si_code <= 0;

	if (has_handler(&previous) && !(sent && passed_on)) {
		passed_on = 1;
		if (previous.sa_flags & SA_SIGINFO)
			previous.sa_sigaction(signo, info, context);
		else
			previous.sa_handler(signo);
		return;
	}
	/* The instruction is repeated and meets the default action; what was sent is sent again. */
	signal(signo, SIG_DFL);
	if (sent)
		raise(signo);
}

static void on_sigbus(int signo, siginfo_t *info, void *context)
{
	int saved = errno;

	/* Only the kernel's own fill in si_addr. */
	if (info->si_code <= 0 || !handle((uintptr_t)info->si_addr))
		pass_on(signo, info, context);
	errno = saved;
}

/* Others may have put their handler in front of ours since, and would not ask it first. */
static int install(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	struct sigaction present;

	if (sigaction(SIGBUS, NULL, &present) < 0)
		return -errno;
	if (present.sa_flags & SA_SIGINFO && present.sa_sigaction == on_sigbus)
		return 0;
	previous = present;
	action.sa_sigaction = on_sigbus;
	sigemptyset(&action.sa_mask);
	return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

static int take_slot(void)
{
	unsigned int n = atomic_load_explicit(&n_watches, memory_order_relaxed);

	for (unsigned int i = 0; i < n; i++)
		if (!watches[i].taken)
			return (int)i;
	if (n == MAX_WATCHES)
		return -ENOSPC;
	atomic_store_explicit(&n_watches, n + 1, memory_order_release);
	return (int)n;
}

int mv_sigbus_watch(void *map, size_t size, size_t page, int fault_fd)
{
	const struct range range = {
		.start = (uintptr_t)map, .size = size, .page = page, .fault_fd = fault_fd,
	};
	int slot;

	pthread_mutex_lock(&table_lock);
	slot = install();
	if (slot == 0)
		slot = take_slot();
	if (slot >= 0) {
		watches[slot].taken = true;
		write_watch(&watches[slot], &range);
	}
	pthread_mutex_unlock(&table_lock);
	return slot;
}

void mv_sigbus_unwatch(unsigned int slot)
{
	pthread_mutex_lock(&table_lock);
	write_watch(&watches[slot], &(struct range){ 0 });
	watches[slot].taken = false;
	pthread_mutex_unlock(&table_lock);
}
