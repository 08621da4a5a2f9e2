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
 * A slot is in use while its `size` is not zero. A (in watch) pairs with A in the handler: who
 * sees the size sees the rest of the slot. A slot is given back before its mapping goes, when
 * nobody touches that memory any more.
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
	uintptr_t start;
	int fault_fd;
	bool taken;		/* under table_lock */
	_Atomic size_t size;
};

static struct watch watches[MAX_WATCHES];
static _Atomic unsigned int n_watches;	/* slots ever used */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;
static bool installed;			/* under table_lock */

static bool replace_mapping(const struct watch *watch, size_t size)
{
	static const uint64_t one = 1;
	void *map = mmap((void *)watch->start, size, PROT_READ | PROT_WRITE,
			 MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ssize_t written;

	if (map == MAP_FAILED)
		return false;
	/* A full counter is as good as one more; there is nobody to tell of other errors. */
	written = write(watch->fault_fd, &one, sizeof(one));
	(void)written;
	return true;
}

static bool handle(uintptr_t addr)
{
	unsigned int n = atomic_load_explicit(&n_watches, memory_order_acquire);

	for (unsigned int i = 0; i < n; i++) {
		/* A */
		size_t size = atomic_load_explicit(&watches[i].size, memory_order_acquire);

		if (size > 0 && addr - watches[i].start < size)
			return replace_mapping(&watches[i], size);
	}
	return false;
}

static void pass_on(int signo, siginfo_t *info, void *context)
{
	if (previous.sa_flags & SA_SIGINFO) {
		previous.sa_sigaction(signo, info, context);
	} else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
		previous.sa_handler(signo);
	} else {
		/* The instruction is repeated and meets the default action; one that was sent is not. */
		sigaction(SIGBUS, &previous, NULL);
		if (info->si_code <= 0)
			raise(signo);
	}
}

static void on_sigbus(int signo, siginfo_t *info, void *context)
{
	int saved = errno;

	/* Only the kernel's own fill in si_addr. */
	if (info->si_code <= 0 || !handle((uintptr_t)info->si_addr))
		pass_on(signo, info, context);
	errno = saved;
}

static int install(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };

	if (installed)
		return 0;
	action.sa_sigaction = on_sigbus;
	sigemptyset(&action.sa_mask);
	if (sigaction(SIGBUS, &action, &previous) < 0)
		return -errno;
	installed = true;
	return 0;
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

int mv_sigbus_watch(void *map, size_t size, int fault_fd)
{
	int slot;

	pthread_mutex_lock(&table_lock);
	slot = install();
	if (slot == 0)
		slot = take_slot();
	if (slot >= 0) {
		struct watch *watch = &watches[slot];

		watch->taken = true;
		watch->start = (uintptr_t)map;
		watch->fault_fd = fault_fd;
		/* A */
		atomic_store_explicit(&watch->size, size, memory_order_release);
	}
	pthread_mutex_unlock(&table_lock);
	return slot;
}

void mv_sigbus_unwatch(unsigned int slot)
{
	pthread_mutex_lock(&table_lock);
	atomic_store_explicit(&watches[slot].size, 0, memory_order_release);
	watches[slot].taken = false;
	pthread_mutex_unlock(&table_lock);
}
