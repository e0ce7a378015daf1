/* The floor: what a bare write() loop pays for the same frame to the same number of sockets.
 *
 *     write_baseline N        listens on 127.0.0.1, prints its port, accepts N connections, then obeys stdin:
 *       'f' u32 len, bytes    the frame to send from now on (host byte order)
 *       'g'                   write it once to each of the N sockets
 *
 * It does nothing else, so that its CPU time over the frames written is the kernel's price of a frame. A short write
 * ends it with status 3: a floor that leaves bytes out would be no floor.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int read_exactly(void *into, size_t wanted) {
    size_t have = 0;
    while (have < wanted) {
        ssize_t n = read(0, (char *)into + have, wanted - have);
        if (n <= 0) return 0;
        have += (size_t)n;
    }
    return 1;
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 0;
    if (count <= 0) return 2;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    int *sockets = calloc((size_t)count, sizeof *sockets);
    for (int i = 0; i < count; i++) {
        sockets[i] = accept(listener, NULL, NULL);
        if (sockets[i] < 0) return 1;
        setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }

    char *frame = NULL, order;
    uint32_t length = 0;
    while (read_exactly(&order, 1)) {
        if (order == 'f') {
            if (!read_exactly(&length, sizeof length)) return 1;
            frame = realloc(frame, length);
            if (!frame || !read_exactly(frame, length)) return 1;
        } else {
            for (int i = 0; i < count; i++)
                if (write(sockets[i], frame, length) != (ssize_t)length) return 3;
        }
    }
    return 0;
}
