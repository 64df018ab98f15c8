/* What the programs of the benchmark share: how they are started, and how they report.
 *
 * Each prepares its memory, prints "ready", waits for a byte on its standard input, does its work on the descriptor
 * that it was given, and prints two times and a count: the first byte, the last byte (CLOCK_MONOTONIC, ns), bytes. It
 * ends with its standard input. */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Bytes that one system call moves at most: what the daemons use as well. */
#define PIECE ((size_t)1 << 20)

static inline void check(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static inline int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static inline size_t smaller(size_t one, size_t other)
{
	return one < other ? one : other;
}

/* Bytes that no two pages have in common (xorshift64). */
static inline void fill(void *memory, size_t size)
{
	static uint64_t state = 0x9e3779b97f4a7c15ULL;
	uint64_t *word = memory, *end = word + size / sizeof *word;

	while (word < end) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		*word++ = state;
	}
}

/* A memfd with all its pages, mapped. */
static inline void *memory_file(size_t size, int *fd)
{
	void *map;

	*fd = memfd_create("reference", MFD_CLOEXEC);
	check(*fd >= 0 && ftruncate(*fd, size) == 0, "memfd");
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	check(map != MAP_FAILED, "mmap");
	fill(map, size);
	return map;
}

static inline void wait_for_go(void)
{
	char byte;

	puts("ready");
	fflush(stdout);
	check(read(STDIN_FILENO, &byte, 1) == 1, "go");
}

/* And wait until it was looked at what that took, before memory is given back: a daemon keeps its own. */
static inline void report(int64_t first, int64_t last, size_t bytes)
{
	printf("%lld %lld %zu\n", (long long)first, (long long)last, bytes);
	fflush(stdout);
	while (getchar() != EOF)
		;
}

#endif
