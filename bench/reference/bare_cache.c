/* bare_cache FD BYTES DIGEST: what the cache asks of the kernel, and nothing else: frames out of a TCP socket, to its end,
 * into recycled memory. DIGEST 1: and their digest. */
#include "frames.h"
#include <sys/uio.h>

int main(int argc, char **argv)
{
	int fd = atoi(argv[argc - 3]), digests = atoi(argv[argc - 1]), memfd;
	size_t total = strtoull(argv[argc - 2], NULL, 10), received = 0, held = 0;
	uint32_t left = 0;
	char *memory = memory_file(total, &memfd), header[HEADER];
	int64_t first = 0;

	wait_for_go();
	for (;;) {
		struct iovec parts[2] = { { memory + received, left }, { header + held, HEADER - held } };
		struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
		ssize_t count = recvmsg(fd, &message, 0);
		size_t payload;

		check(count >= 0, "recvmsg");
		if (!count)
			break;
		if (!first)
			first = now();
		payload = smaller(count, left);
		if (digests)
			digest(memory + received, payload);
		received += payload;
		left -= payload;
		held += count - payload;
		if (!left && held == HEADER) {
			memcpy(&left, header, sizeof left);
			check(left <= PIECE && left <= total - received, "a frame is too large");
			held = 0;
		}
	}
	report(first, now(), received);
	return 0;
}
