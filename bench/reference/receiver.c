/* receiver FD BYTES: a socket, to its end, into a memfd whose pages are there already, as those of recycled memory are. */
#include "common.h"
#include <sys/socket.h>

int main(int argc, char **argv)
{
	int fd = atoi(argv[argc - 2]), memfd;
	size_t total = strtoull(argv[argc - 1], NULL, 10), received = 0;
	int64_t first = 0;
	ssize_t count;
	char *memory = memory_file(total, &memfd);

	wait_for_go();
	while ((count = recv(fd, memory + received, smaller(PIECE, total - received), 0)) > 0) {
		if (!received)
			first = now();
		received += count;
	}
	check(count == 0, "recv");
	report(first, now(), received);
	return 0;
}
