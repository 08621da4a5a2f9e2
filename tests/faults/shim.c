/*
 * A library for LD_PRELOAD that makes chosen calls of libc fail.
 *
 * Which ones stands in a page shared with the test (struct control), named by the environment
 * variable FAULT_CONTROL. Nothing fails and nothing is counted unless the page is armed, so the
 * start of the program is left alone and calls are counted from the moment that the test means.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* As tests/faults/shim.py packs it. */
struct control {
	char function[24];
	uint32_t first;		/* the call that fails, counted from 1 */
	uint32_t last;		/* and up to which one */
	int32_t error;		/* the errno of it */
	int32_t fd;		/* only calls about this descriptor count; -1: all */
	uint32_t core_only;	/* only calls of the extension module count */
	_Atomic uint32_t calls;	/* how many counted */
	_Atomic uint32_t failed;	/* how many of those failed */
	_Atomic uint32_t armed;
};

static struct control *control;

__attribute__((constructor)) static void open_control(void)
{
	const char *path = getenv("FAULT_CONTROL");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *page;

	if (fd < 0)
		return;
	page = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page != MAP_FAILED)
		control = page;
}

static bool is_core(const void *caller)
{
	Dl_info info;

	return dladdr(caller, &info) && strstr(info.dli_fname, "/_core.");
}

/* Whether this call is to fail; if so, errno is set. */
static bool fails(const char *function, int fd, const void *caller)
{
	uint32_t call;

	if (!control || !atomic_load(&control->armed) || strcmp(control->function, function) != 0)
		return false;
	if (control->fd >= 0 && control->fd != fd)
		return false;
	if (control->core_only && !is_core(caller))
		return false;
	call = atomic_fetch_add(&control->calls, 1) + 1;
	if (call < control->first || call > control->last)
		return false;
	atomic_fetch_add(&control->failed, 1);
	errno = control->error;
	return true;
}

/* Make `real` the function that would have been called without this library. */
#define FIND_REAL(name, type, params)                                                              \
	static type(*real) params;                                                                 \
	if (!real)                                                                                 \
		*(void **)&real = dlsym(RTLD_NEXT, #name)

#define WRAP(type, failure, name, params, args, fd)                                                \
	type name params                                                                           \
	{                                                                                          \
		FIND_REAL(name, type, params);                                                     \
		return fails(#name, fd, __builtin_return_address(0)) ? failure : real args;        \
	}

WRAP(void *, NULL, malloc, (size_t size), (size), -1)
WRAP(void *, NULL, calloc, (size_t count, size_t size), (count, size), -1)
WRAP(void *, MAP_FAILED, mmap, (void *addr, size_t size, int prot, int flags, int fd, off_t offset),
     (addr, size, prot, flags, fd, offset), fd)

WRAP(int, -1, eventfd, (unsigned int count, int flags), (count, flags), -1)
WRAP(int, -1, epoll_create1, (int flags), (flags), -1)
WRAP(int, -1, poll, (struct pollfd *fds, nfds_t n, int timeout), (fds, n, timeout), -1)

WRAP(int, -1, socket, (int domain, int type, int protocol), (domain, type, protocol), -1)
WRAP(int, -1, socketpair, (int domain, int type, int protocol, int fds[2]),
     (domain, type, protocol, fds), -1)
WRAP(int, -1, bind, (int fd, __CONST_SOCKADDR_ARG addr, socklen_t size), (fd, addr, size), fd)
WRAP(int, -1, listen, (int fd, int backlog), (fd, backlog), fd)
WRAP(int, -1, accept4, (int fd, __SOCKADDR_ARG addr, socklen_t *size, int flags),
     (fd, addr, size, flags), fd)
WRAP(ssize_t, -1, send, (int fd, const void *data, size_t size, int flags),
     (fd, data, size, flags), fd)
WRAP(ssize_t, -1, sendmsg, (int fd, const struct msghdr *message, int flags),
     (fd, message, flags), fd)

WRAP(ssize_t, -1, write, (int fd, const void *data, size_t size), (fd, data, size), fd)
WRAP(ssize_t, -1, preadv2,
     (int fd, const struct iovec *iov, int n, off_t offset, int flags),
     (fd, iov, n, offset, flags), fd)
WRAP(ssize_t, -1, readlink, (const char *path, char *link, size_t size), (path, link, size), -1)
WRAP(int, -1, fstat, (int fd, struct stat *status), (fd, status), fd)
WRAP(int, -1, fchmod, (int fd, mode_t mode), (fd, mode), fd)
WRAP(int, -1, unlink, (const char *path), (path), -1)
WRAP(int, -1, rename, (const char *from, const char *to), (from, to), -1)
WRAP(int, -1, sigaction, (int number, const struct sigaction *now, struct sigaction *before),
     (number, now, before), -1)

/* Only what takes memory can fail for the lack of it. */
int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	FIND_REAL(epoll_ctl, int, (int, int, int, struct epoll_event *));
	if (op == EPOLL_CTL_ADD && fails("epoll_ctl", fd, __builtin_return_address(0)))
		return -1;
	return real(epfd, op, fd, event);
}

int fcntl(int fd, int command, ...)
{
	va_list args;
	void *arg;

	FIND_REAL(fcntl, int, (int, int, ...));
	va_start(args, command);
	arg = va_arg(args, void *);
	va_end(args);
	return fails("fcntl", fd, __builtin_return_address(0)) ? -1 : real(fd, command, arg);
}

/* Close the descriptors of a message, and say that there was no room for them. */
static void lose_descriptors(struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		const unsigned char *data = CMSG_DATA(c), *end = (unsigned char *)c + c->cmsg_len;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (int fd; data + sizeof(fd) <= end; data += sizeof(fd)) {
			memcpy(&fd, data, sizeof(fd));
			close(fd);
		}
	}
	message->msg_controllen = 0;
	message->msg_flags |= MSG_CTRUNC;
}

/*
 * "recvmsg" fails as it is. "recvmsg-truncated", of which only messages with descriptors count,
 * loses them, which is what the kernel does when the process can have no more.
 */
ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	ssize_t n;

	FIND_REAL(recvmsg, ssize_t, (int, struct msghdr *, int));
	if (fails("recvmsg", fd, __builtin_return_address(0)))
		return -1;
	n = real(fd, message, flags);
	if (n >= 0 && message->msg_controllen > 0 &&
	    fails("recvmsg-truncated", fd, __builtin_return_address(0)))
		lose_descriptors(message);
	return n;
}
