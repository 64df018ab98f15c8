/* victim ZEROS MIB FILE: holds MIB of memory, ZEROS of 10 pages zeros and the others random, and ticks every
 * millisecond into FILE: how often it has ticked, and the longest pause between two ticks: its length and its end. In
 * ns of CLOCK_REALTIME: criu gives a restored process a monotonic clock that goes on from where it was dumped. */
#include "common.h"

#define PAGE 4096
#define TICK_US 1000

static int64_t wall_clock(void)
{
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	size_t zeros = strtoull(argv[argc - 3], NULL, 10), size = strtoull(argv[argc - 2], NULL, 10) << 20, page;
	int fd = open(argv[argc - 1], O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct {
		int64_t count, pause, resumed;
	} said = { 0 };
	int64_t last, time;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(memory != MAP_FAILED && fd >= 0, "victim");
	for (page = 0; page < size / PAGE; page++) {
		if (page % 10 >= zeros)
			fill(memory + page * PAGE, PAGE);
		else
			memset(memory + page * PAGE, 0, PAGE);
	}
	for (last = wall_clock();; last = time) {
		usleep(TICK_US);
		time = wall_clock();
		if (time - last > said.pause) {
			said.pause = time - last;
			said.resumed = time;
		}
		said.count++;
		check(pwrite(fd, &said, sizeof said, 0) == sizeof said, "pwrite");
	}
}
