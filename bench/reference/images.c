/* images DIALECT SOCKET COUNT SIZE: many small images to the proxy, as criu dump has them: one pipe each, filled and
 * closed before the next begins. DIALECT is stream or images, see docs/protocol.md. Stays until its input ends, as criu
 * does until its action script has answered. */
#include "common.h"
#include <sys/socket.h>
#include <sys/un.h>

#define LABEL "/bench"
#define MODE_WRITE 1
#define MODE_APPEND 1024

static const char *path;

static int connected(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	check(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect");
	return fd;
}

/* A protobuf string of fewer than 128 bytes. */
static char *string(char *at, int field, const char *value)
{
	size_t length = strlen(value);

	*at++ = field << 3 | 2;
	*at++ = length;
	memcpy(at, value, length);
	return at + length;
}

static void send_message(int fd, const char *body, const char *end)
{
	char message[512];
	uint32_t length = end - body;

	memcpy(message, &length, sizeof length);
	memcpy(message + sizeof length, body, length);
	check(send(fd, message, sizeof length + length, 0) == (ssize_t)(sizeof length + length), "send");
}

/* The byte that carries the read end of a new pipe; the write end. */
static int send_pipe(int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int ends[2];

	check(pipe2(ends, O_CLOEXEC) == 0, "pipe");
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), ends, sizeof(int));
	check(sendmsg(fd, &message, 0) == 1, "sendmsg");
	close(ends[0]);
	return ends[1];
}

static int begin_stream(int fd, const char *name)
{
	char body[300];

	send_message(fd, body, string(body, 1, name));
	return send_pipe(fd);
}

static char *request(char *at, const char *name, const char *label, unsigned mode)
{
	at = string(string(at, 1, name), 2, label);
	*at++ = 3 << 3;
	for (; mode > 0x7f; mode >>= 7)
		*at++ = mode | 0x80;
	*at++ = mode;
	return at;
}

static int begin_remote(int unused, const char *name)
{
	char body[300];
	int fd = connected(), writing;

	(void)unused;
	send_message(fd, body, request(body, name, LABEL, MODE_WRITE));
	writing = send_pipe(fd);
	close(fd);
	return writing;
}

static void push_label(void)
{
	char body[300];
	int fd = connected();

	send_message(fd, body, request(body, "parent", "", MODE_APPEND));
	send_message(fd, body, string(body, 1, LABEL));
	close(fd);
}

static void write_image(int fd, const char *memory, size_t size)
{
	for (size_t sent = 0; sent < size;) {
		ssize_t count = write(fd, memory + sent, size - sent);

		check(count > 0, "write");
		sent += count;
	}
	close(fd);
}

int main(int argc, char **argv)
{
	int streaming = argc == 5 && !strcmp(argv[1], "stream"), fd = -1;
	size_t count = strtoull(argv[argc - 2], NULL, 10), size = strtoull(argv[argc - 1], NULL, 10);
	int (*begin)(int, const char *) = streaming ? begin_stream : begin_remote;
	char *memory = malloc(size), name[32];
	int64_t first;

	check(memory != NULL, "malloc");
	fill(memory, size);
	path = argv[2];
	wait_for_go();
	first = now();
	if (streaming)
		fd = connected();
	else
		push_label();
	for (size_t number = 0; number < count; number++) {
		snprintf(name, sizeof name, "image-%zu.img", number);
		write_image(begin(fd, name), memory, size);
	}
	write_image(begin(fd, "inventory.img"), memory, 1);
	report(first, now(), count * size);
	return 0;
}
