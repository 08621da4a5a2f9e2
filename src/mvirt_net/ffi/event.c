/*
 * Foreign eventfds. The frontend keeps its end of the open file description: it can make it
 * blocking and fill the counter whenever it likes, so O_NONBLOCK alone is no protection.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

int mv_event_check(int fd)
{
	static const char eventfd_link[] = "anon_inode:[eventfd]";
	char path[32], link[sizeof(eventfd_link)];
	int flags = fcntl(fd, F_GETFL);
	ssize_t n;

	if (flags < 0)
		return -errno;
	/* It has the name of what it is, and does nothing of that. */
	if (flags & O_PATH)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link));
	if (n < 0)
		return -errno;
	return n == sizeof(eventfd_link) - 1 && !memcmp(link, eventfd_link, (size_t)n);
}

int mv_event_read(int fd)
{
	uint64_t count;
	struct iovec iov = { .iov_base = &count, .iov_len = sizeof(count) };
	ssize_t n = preadv2(fd, &iov, 1, -1, RWF_NOWAIT); /* eventfds know it since Linux 5.8 */

	if (n == (ssize_t)sizeof(count))
		return 1;
	if (n >= 0)
		return -EPIPE;
	return errno == EAGAIN ? 0 : -errno;
}

/*
 * Writing is another matter: between a poll() that says "writable" and the write() the frontend can
 * make the descriptor blocking and its counter full, and then this thread sleeps until it likes. The
 * kernel itself never waits when it signals an eventfd. Asynchronous I/O lets us have that done: the
 * request (to poll the eventfd, which is always ready for something) is complete when it has been
 * submitted, and its completion is signalled to the eventfd.
 */
enum {
	AIO_EVENTS = 128,
	REAP_EVERY = 64,	/* completions, before they are taken out of the kernel's ring */
};

static pthread_once_t aio_once = PTHREAD_ONCE_INIT;
static aio_context_t aio;	/* 0: there is none */
static atomic_uint aio_completed;
static bool handles_fork;

static void aio_after_fork(void)
{
	static const pthread_once_t anew = PTHREAD_ONCE_INIT;

	/* The context is the parent's. */
	aio = 0;
	aio_once = anew;
}

static int signal_by_aio(int fd);

/* Have a context, and see that it does what it is for. */
static void aio_begin(void)
{
	int probe = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	if (syscall(SYS_io_setup, AIO_EVENTS, &aio) < 0)
		aio = 0;
	if (aio && (probe < 0 || signal_by_aio(probe) != 1 || mv_event_read(probe) != 1)) {
		syscall(SYS_io_destroy, aio);
		aio = 0;
	}
	if (probe >= 0)
		close(probe);
	if (!handles_fork) {
		handles_fork = true;
		pthread_atfork(NULL, NULL, aio_after_fork);
	}
}

static void aio_reap(void)
{
	struct io_event events[AIO_EVENTS];

	syscall(SYS_io_getevents, aio, 0L, (long)AIO_EVENTS, events, NULL);
}

/* 1: signalled; negative error. */
static int signal_by_aio(int fd)
{
	struct iocb request = {
		.aio_lio_opcode = IOCB_CMD_POLL,
		.aio_fildes = (uint32_t)fd,
		.aio_buf = POLLIN | POLLOUT,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = (uint32_t)fd,
	};
	struct iocb *requests[] = { &request };

	if (atomic_fetch_add_explicit(&aio_completed, 1, memory_order_relaxed) % REAP_EVERY == 0)
		aio_reap();
	return syscall(SYS_io_submit, aio, 1L, requests) == 1 ? 1 : -errno;
}

static int write_if_writable(int fd)
{
	static const uint64_t one = 1;
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
		return 0;
	if (write(fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
		return 1;
	return errno == EAGAIN ? 0 : -errno;
}

bool mv_event_never_blocks(void)
{
	pthread_once(&aio_once, aio_begin);
	return aio != 0;
}

int mv_event_write(int fd)
{
	int r;

	if (!mv_event_never_blocks())
		return write_if_writable(fd);
	r = signal_by_aio(fd);
	/* Several threads may have filled the ring at once. */
	if (r == -EAGAIN) {
		aio_reap();
		r = signal_by_aio(fd);
	}
	/* The kernel has no memory for it; a driver that is never called would wait for ever. */
	return r == -EAGAIN || r == -ENOMEM ? write_if_writable(fd) : r;
}
