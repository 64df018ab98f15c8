/* The frames between bare_proxy and bare_cache: a header no smaller than the link's, and its payload. */
#ifndef FRAMES_H
#define FRAMES_H

#include "common.h"
#include <poll.h>
#include <sys/socket.h>

/* Bytes, as the header of an extent has at most (docs/protocol.md); the first four are the length of the payload. */
#define HEADER 44

static inline void wait_for(int fd, short events)
{
	struct pollfd one = { fd, events, 0 };

	check(poll(&one, 1, -1) == 1, "poll");
}

/* What came out last: the compiler would leave out what nobody wants. */
volatile uint64_t digested;

/* The least that a digest costs: each word is looked at once. As fast as xxh3, which does more with it. */
static inline void digest(const char *data, size_t size)
{
	const uint64_t *word = (const uint64_t *)data, *end = word + size / (4 * sizeof *word) * 4;
	uint64_t one = 0, two = 0, three = 0, four = 0;

	for (; word < end; word += 4) {
		one += word[0];
		two += word[1];
		three += word[2];
		four += word[3];
	}
	digested = one ^ two ^ three ^ four;
}

#endif
