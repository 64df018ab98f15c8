/* bare_proxy IN OUT KEEP: what the proxy asks of the kernel, and nothing else: IN, a pipe or a socket, in frames into
 * the TCP socket OUT. KEEP 1: read into recycled memory, digested, and sent with sendfile; 0: spliced. */
#include "frames.h"
#include <sys/ioctl.h>
#include <sys/sendfile.h>

/* As large as the default window. */
#define WINDOW ((size_t)256 << 20)

/* The bytes that a call moved; 0: there was no room in the socket, and now there is. */
static size_t moved_by(ssize_t count, int out, const char *call)
{
	check(count > 0 || errno == EAGAIN, call);
	if (count > 0)
		return count;
	wait_for(out, POLLOUT);
	return 0;
}

static void send_header(int out, uint32_t size)
{
	char header[HEADER] = { 0 };
	size_t sent = 0;

	memcpy(header, &size, sizeof size);
	while (sent < HEADER)
		sent += moved_by(send(out, header + sent, HEADER - sent, MSG_MORE), out, "send");
}

static size_t pass(int in, int out)
{
	int waiting;
	size_t size, left;

	wait_for(in, POLLIN);
	check(ioctl(in, FIONREAD, &waiting) == 0, "FIONREAD");
	size = left = smaller(waiting, PIECE);
	if (size)
		send_header(out, size);
	while (left)
		left -= moved_by(splice(in, NULL, out, NULL, left, SPLICE_F_MOVE | SPLICE_F_NONBLOCK), out, "splice");
	return size;
}

static size_t keep(int in, int out, int memfd, char *memory, off_t at)
{
	size_t size = 0, left;

	wait_for(in, POLLIN);
	while (size < PIECE) {
		ssize_t count = read(in, memory + at + size, PIECE - size);

		check(count >= 0 || errno == EAGAIN, "read");
		if (count <= 0)
			break;
		size += count;
	}
	left = size;
	digest(memory + at, size);
	if (size)
		send_header(out, size);
	while (left)
		left -= moved_by(sendfile(out, memfd, &at, left), out, "sendfile");
	return size;
}

int main(int argc, char **argv)
{
	int in = atoi(argv[argc - 3]), out = atoi(argv[argc - 2]), keeps = atoi(argv[argc - 1]), memfd = -1;
	char *memory = keeps ? memory_file(WINDOW, &memfd) : NULL;
	size_t moved = 0, frames = 0, count;
	struct stat found;
	int64_t first;

	check(fcntl(in, F_SETFL, O_NONBLOCK) == 0 && fcntl(out, F_SETFL, O_NONBLOCK) == 0, "O_NONBLOCK");
	check(fstat(in, &found) == 0, "fstat");
	if (S_ISFIFO(found.st_mode))
		check(fcntl(in, F_SETPIPE_SZ, PIECE) >= 0, "F_SETPIPE_SZ");
	wait_for_go();
	first = now();
	do {
		count = keeps ? keep(in, out, memfd, memory, frames++ % (WINDOW / PIECE) * PIECE) : pass(in, out);
		moved += count;
	} while (count);
	check(shutdown(out, SHUT_WR) == 0, "shutdown");
	report(first, now(), moved);
	return 0;
}
