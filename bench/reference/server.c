/* server FD BYTES: a memfd into a pipe of 1 MiB with sendfile. */
#include "common.h"
#include <sys/sendfile.h>

int main(int argc, char **argv)
{
	int fd = atoi(argv[argc - 2]), memfd;
	size_t total = strtoull(argv[argc - 1], NULL, 10);
	off_t sent = 0;
	int64_t first;

	memory_file(total, &memfd);
	check(fcntl(fd, F_SETPIPE_SZ, PIECE) >= 0, "F_SETPIPE_SZ");
	wait_for_go();
	first = now();
	while ((size_t)sent < total)
		check(sendfile(fd, memfd, &sent, smaller(PIECE, total - sent)) > 0, "sendfile");
	check(close(fd) == 0, "close");
	report(first, now(), sent);
	return 0;
}
