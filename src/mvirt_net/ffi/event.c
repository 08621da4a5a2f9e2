/*
 * Foreign eventfds. The frontend keeps its end of the open file description: it can make it
 * blocking and fill the counter whenever it likes, so O_NONBLOCK alone is no protection.
 */
#include "core.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

int mv_event_check(int fd)
{
	static const char eventfd_link[] = "anon_inode:[eventfd]";
	char path[32], link[sizeof(eventfd_link)];
	ssize_t n;

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

int mv_event_write(int fd)
{
	static const uint64_t one = 1;
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
		return 0;
	if (write(fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
		return 1;
	return errno == EAGAIN ? 0 : -errno;
}
