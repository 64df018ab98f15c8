/* reader FD: a pipe to its end, into one buffer, as criu reads pages into those of the process that it restores. */
#include "common.h"

int main(int argc, char **argv)
{
	int fd = atoi(argv[argc - 1]);
	size_t received = 0;
	int64_t first = 0;
	ssize_t count;
	char *memory = malloc(PIECE);

	check(memory != NULL, "malloc");
	fill(memory, PIECE);
	wait_for_go();
	while ((count = read(fd, memory, PIECE)) > 0) {
		if (!received)
			first = now();
		received += count;
	}
	check(count == 0, "read");
	report(first, now(), received);
	return 0;
}
