/* writer FD BYTES: memory into a pipe with vmsplice, as criu does, or into a socket with write. */
#include "common.h"
#include <sys/uio.h>

/* Bytes of memory that are written again and again: more than any cache of a processor. */
#define REGION ((size_t)256 << 20)

int main(int argc, char **argv)
{
	int fd = atoi(argv[argc - 2]);
	size_t total = strtoull(argv[argc - 1], NULL, 10), region = smaller(total, REGION), sent = 0;
	struct stat found;
	int64_t first;
	char *memory = mmap(NULL, region, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(memory != MAP_FAILED, "mmap");
	fill(memory, region);
	check(fstat(fd, &found) == 0, "fstat");
	wait_for_go();
	first = now();
	while (sent < total) {
		size_t at = sent % region;
		struct iovec piece = { memory + at, smaller(smaller(PIECE, region - at), total - sent) };
		ssize_t count = S_ISFIFO(found.st_mode) ? vmsplice(fd, &piece, 1, 0) : write(fd, piece.iov_base, piece.iov_len);

		check(count > 0, "write");
		sent += count;
	}
	check(close(fd) == 0, "close");
	report(first, now(), sent);
	return 0;
}
