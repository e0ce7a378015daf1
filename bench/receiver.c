/* The receiving side: many WebSocket connections on one epoll, so cheap that the server is what is measured.
 *
 * What it keeps true: every frame is seen whole and every event counted and checked, on every connection. An event is
 * found by its token, which the publisher wrote into the event's own data and every server passes on untouched:
 *
 *     '~' stream (4 hex digits) number (8) sent, in ns of CLOCK_REALTIME (16) '~'
 *
 * The numbers of one stream grow by one from 0 within a round, so that an event that is lost, repeated or out of order
 * can't hide; a stream outside [low, high] of its connection got past a filter. A slow connection may still be at a round
 * that is over for the others: there the next one's 0 is due where that ended for them, and nowhere else. The time from
 * `sent` to the read that brought it goes into a histogram of 2,048 linear steps per power of two, as HdrHistogram's with
 * 3 digits; that of slow connections does not.
 * Tokens are looked for in the payload's bytes as a stream, so a server may batch, fragment or split as it likes.
 *
 * It is longer than 500 lines because it is a whole program that stands alone: it needs a C compiler and nothing else
 * (zlib, where it is there, for compressed frames).
 *
 * Orders come on stdin, in host byte order; each is answered by one line of JSON on stdout.
 *   'S' u8 n, ready mark · u8 at, u8 n, ping mark · u8 n, ping between others · u16 n, pong frame · u8 compressed
 *       how the server speaks
 *   'O' u32 count, u32 at once, f64 timeout, then per connection                          opens; answers when all are ready
 *       u16 port, u32 low, u32 high, u8 flags (1 slow, 2 no handshake), u16 n, request, u16 n, greeting
 *   'U' u64 events, f64 timeout     answers when so many have arrived since the reset
 *   'R' resets the counts · 'Q' report · 'F' the newest frame with events: {"bytes": n}, then n bytes
 *   'P' f64 bytes per second for each slow connection · 'C' closes all
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_ZLIB
#include <zlib.h>
#endif

enum { BUFFER = 4 << 20, TOKEN = 30, STREAMS = 16, FAULTS = 10, STEPS = 2048, POWERS = 34, SLOW_READ_MS = 50 };
enum { WAITING, CONNECTING, UPGRADING, GREETED, OPEN, ENDED };
enum { SLOW = 1, RAW = 2, DEFLATED = 0xC1 };
#define GIVE_UP_NS 2000000000ull /* when a connection has ended, what is awaited will not come */

typedef struct {
    uint32_t stream, next;
    uint32_t round; /* only of a slow connection: the first in which it may be */
} Stream;

typedef struct {
    int fd;
    uint16_t port;
    uint8_t state, flags, streams, carried;
    uint32_t low, high;
    uint32_t joined; /* the round of which its first events are */
    uint64_t events, started;
    char *request, *greeting;
    uint16_t request_size, greeting_size;
    char *tail;
    size_t tail_size, tail_room;
    char carry[TOKEN];
    Stream stream[STREAMS];
} Connection;

static struct {
    char ready[256], ping[256], between[256], pong[65536];
    int ready_size, ping_at, ping_size, between_size, pong_size, compressed;
} style;

static struct {
    uint64_t frames, events, bytes, pings, slow_events, ended, slow_ended;
    uint64_t wrong_order, repeated, stray;
    uint64_t latency[POWERS][STEPS];
    char fault[FAULTS][512];
    int faults;
} seen;

/* For each round that is over and each stream that it had: the number that would have been next. Round after round. */
static struct {
    uint32_t round, stream, next;
} *ends;
static size_t ends_count, ends_room;
static uint32_t round_now;

static Connection **all;
static size_t count, room, next_to_open, opened, opening, at_once = 64;
static int epoll, slow_per_read, waiting_for;
static uint64_t deadline, wanted, open_started, open_latency[POWERS][STEPS];
static char *buffer, *frame;
static size_t frame_size, frame_room;
static uint64_t now_real;

static uint64_t clock_ns(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void must(int fine, const char *what) {
    if (fine) return;
    fprintf(stderr, "receiver: %s: %s\n", what, strerror(errno));
    exit(1);
}

__attribute__((format(printf, 1, 2))) static void fault(const char *format, ...) {
    if (seen.faults == FAULTS) return; /* a void round needs one */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(seen.fault[seen.faults++], sizeof seen.fault[0], format, arguments);
    va_end(arguments);
}

/* ------------------------------------------------------------------------------------------------ histogram */

static void record(uint64_t (*histogram)[STEPS], uint64_t microseconds) {
    int power = 0;
    while (microseconds >> power >= STEPS && power < POWERS - 1) power++;
    histogram[power][microseconds >> power < STEPS ? microseconds >> power : STEPS - 1]++;
}

static void print_histogram(const char *name, uint64_t (*histogram)[STEPS]) {
    const char *comma = "";
    printf("\"%s\":[", name);
    for (uint64_t power = 0; power < POWERS; power++)
        for (uint64_t step = 0; step < STEPS; step++)
            if (histogram[power][step]) {
                printf("%s[%llu,%llu]", comma, (unsigned long long)(step << power),
                       (unsigned long long)histogram[power][step]);
                comma = ",";
            }
    printf("]");
}

/* ------------------------------------------------------------------------------------------------ one event */

static uint64_t hex(const char *digits, int size, int *bad) {
    uint64_t value = 0;
    for (int i = 0; i < size; i++) {
        unsigned c = (unsigned char)digits[i];
        unsigned digit = c - '0' < 10 ? c - '0' : c - 'a' < 6 ? c - 'a' + 10 : 16;
        if (digit > 15) *bad = 1;
        value = value << 4 | (digit & 15);
    }
    return value;
}

/* When a round ends: what those who are not slow have of each stream. */
static void note_ends(void) {
    size_t before = ends_count;
    for (size_t i = 0; i < count; i++)
        for (int k = 0; !(all[i]->flags & SLOW) && k < all[i]->streams; k++) {
            Stream *s = &all[i]->stream[k];
            size_t at = before;
            while (at < ends_count && ends[at].stream != s->stream) at++;
            if (at == ends_room) must((ends = realloc(ends, (ends_room = at * 2 + 64) * sizeof *ends)) != NULL, "memory");
            if (at == ends_count) {
                ends_count++;
                ends[at].round = round_now, ends[at].stream = s->stream, ends[at].next = 0;
            }
            if (s->next > ends[at].next) ends[at].next = s->next;
        }
    round_now++;
}

/* True: a slow connection has all of its round in this stream, and goes on with the next one. */
static int next_round(Stream *s) {
    size_t at = 0;
    while (at < ends_count && (ends[at].stream != s->stream || ends[at].round < s->round)) at++;
    if (at == ends_count || ends[at].next != s->next) return 0;
    s->round = ends[at].round + 1;
    s->next = 0;
    return 1;
}

/* False: it is no token. */
static int take_token(Connection *c, const char *token) {
    int bad = token[TOKEN - 1] != '~';
    uint32_t stream = (uint32_t)hex(token + 1, 4, &bad), number = (uint32_t)hex(token + 5, 8, &bad);
    uint64_t sent = hex(token + 13, 16, &bad);
    if (bad) return 0;
    int slow = c->flags & SLOW;
    c->events++;
    if (slow) seen.slow_events++;
    else seen.events++;
    if (c->flags & RAW) return 1; /* the floor repeats one frame */
    if (sent && !slow) record(seen.latency, now_real > sent ? (now_real - sent) / 1000 : 0);
    if (stream < c->low || stream > c->high) {
        seen.stray++;
        fault("an event of stream %u got past a filter of %u to %u", stream, c->low, c->high);
        return 1;
    }
    Stream *found = NULL;
    for (int i = 0; i < c->streams && !found; i++)
        if (c->stream[i].stream == stream) found = &c->stream[i];
    if (!found) {
        if (c->streams == STREAMS) {
            fault("more than %d streams on one connection", STREAMS);
            return 1;
        }
        found = &c->stream[c->streams++];
        *found = (Stream){stream, 0, c->joined};
    }
    if (number != found->next && !(slow && !number && next_round(found))) {
        if (number < found->next) seen.repeated++;
        else seen.wrong_order++;
        fault("event %u of stream %u where %u was due%s", number, stream, found->next, slow ? ", on a slow connection" : "");
    }
    if (number >= found->next) found->next = number + 1;
    return 1;
}

static uint64_t take_payload(Connection *c, const char *payload, size_t size) {
    const char *at = payload, *end = payload + size;
    uint64_t before = c->events;
    if (c->carried) { /* a token that the frame before began */
        size_t more = (size_t)(TOKEN - c->carried);
        if (more > size) more = size;
        memcpy(c->carry + c->carried, at, more);
        c->carried = (uint8_t)(c->carried + more);
        if (c->carried < TOKEN) return 0;
        c->carried = 0;
        if (take_token(c, c->carry)) at += more;
    }
    while (at < end && (at = memchr(at, '~', (size_t)(end - at)))) {
        if (end - at < TOKEN) {
            c->carried = (uint8_t)(end - at);
            memcpy(c->carry, at, c->carried);
            break;
        }
        at += take_token(c, at) ? TOKEN : 1;
    }
    return c->events - before;
}

/* ------------------------------------------------------------------------------------------------ connections */

static void drop(Connection *c, const char *why) {
    if (c->state == ENDED) return;
    if (c->flags & SLOW) seen.slow_ended++;
    else {
        seen.ended++;
        fault("a connection ended: %s", why);
    }
    if (c->state != OPEN) opening--;
    c->state = ENDED;
    close(c->fd);
    free(c->tail);
    c->tail = NULL;
    c->tail_size = c->tail_room = 0;
}

static void answer(Connection *c, const char *bytes, size_t size) {
    /* A client that reads as this one does has room to answer. */
    if (send(c->fd, bytes, size, MSG_NOSIGNAL) < 0 && errno != EAGAIN) drop(c, strerror(errno));
}

static void is_open(Connection *c) {
    c->state = OPEN;
    opening--;
    opened++;
    record(open_latency, (clock_ns(CLOCK_MONOTONIC) - c->started) / 1000);
    if (c->flags & SLOW) epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
}

#ifdef WITH_ZLIB
/* What follows the mark is one whole raw deflate stream. Most connections get the same bytes: those are compared, not
 * decompressed again. */
static size_t decompress(const char *payload, size_t size, const char **out) {
    enum { KEPT = 256, ROOM = 1 << 20 };
    static struct {
        char *from, *to;
        size_t from_size, to_size;
    } kept[KEPT];
    uint32_t key = (uint32_t)size * 2654435761u;
    for (size_t i = 0; i < 64 && i < size; i++) key = (key ^ (unsigned char)payload[size - 1 - i]) * 16777619u;
    __typeof__(kept[0]) *k = &kept[key % KEPT];
    if (k->from_size != size || memcmp(k->from, payload, size)) {
        z_stream z = {0};
        if (!k->to) k->to = malloc(ROOM);
        z.next_in = (unsigned char *)payload + 1, z.avail_in = (unsigned)size - 1;
        z.next_out = (unsigned char *)k->to, z.avail_out = ROOM;
        if (inflateInit2(&z, -15) != Z_OK) return 0;
        if (inflate(&z, Z_FINISH) != Z_STREAM_END || z.avail_in) fault("a frame that is not deflated");
        k->to_size = ROOM - z.avail_out;
        inflateEnd(&z);
        k->from = realloc(k->from, size);
        memcpy(k->from, payload, size);
        k->from_size = size;
    }
    *out = k->to;
    return k->to_size;
}
#else
static size_t decompress(const char *payload, size_t size, const char **out) {
    fault("this receiver was built without zlib");
    *out = payload;
    return size;
}
#endif

/* At the beginning of a message, or, where a server joins what it says, at its end or between. */
static int is_ping(const char *payload, size_t size) {
    size_t mark = (size_t)style.ping_size, at = (size_t)style.ping_at;
    if (!mark || size < at + mark) return 0;
    if (!memcmp(payload + at, style.ping, mark) || !memcmp(payload + size - mark, style.ping, mark)) return 1;
    return style.between_size && memmem(payload, size, style.between, (size_t)style.between_size);
}

/* One frame, header and all. */
static void take_frame(Connection *c, const char *whole, const char *payload, size_t size) {
    int opcode = whole[0] & 0x0F;
    if (opcode == 8) {
        char why[200];
        int code = size >= 2 ? (unsigned char)payload[0] << 8 | (unsigned char)payload[1] : 1005;
        snprintf(why, sizeof why, "closed with %d %.*s", code, size > 2 ? (int)(size - 2 < 100 ? size - 2 : 100) : 0,
                 size > 2 ? payload + 2 : "");
        drop(c, why);
        return;
    }
    if (opcode == 9) {
        char pong[6 + 125] = {(char)0x8A, (char)(0x80 | size)};
        memcpy(pong + 6, payload, size < 125 ? size : 125);
        seen.pings++;
        answer(c, pong, 6 + size);
        return;
    }
    if (opcode == 10) return;
    const char *wire = payload;
    size_t wire_size = size;
    if (style.compressed && size && (unsigned char)*payload == DEFLATED) size = decompress(payload, size, &payload);
    uint64_t found = take_payload(c, payload, size);
    if (found) {
        seen.frames += !(c->flags & SLOW);
        if (!(c->flags & SLOW) && c == all[0]) { /* for the floor, which sends the same */
            size_t bytes = (size_t)(wire + wire_size - whole);
            if (bytes > frame_room) must((frame = realloc(frame, frame_room = bytes)) != NULL, "memory");
            memcpy(frame, whole, frame_size = bytes);
        }
    } else if (c->state == GREETED && memmem(payload, size, style.ready, (size_t)style.ready_size)) {
        is_open(c);
    } else if (c->state == OPEN && memmem(payload, size, "\"type\":\"error\"", 14)) {
        fault("an error: %.*s", (int)(size < 200 ? size : 200), payload);
    }
    if (is_ping(payload, size)) {
        seen.pings++;
        answer(c, style.pong, (size_t)style.pong_size);
    }
}

/* Whole frames in `bytes`; returns how many bytes they were. */
static size_t take_bytes(Connection *c, const char *bytes, size_t size) {
    size_t at = 0;
    if (c->state == UPGRADING) {
        const char *end = memmem(bytes, size, "\r\n\r\n", 4);
        if (!end) return 0;
        if (size < 12 || memcmp(bytes, "HTTP/1.1 101", 12)) {
            char why[400];
            snprintf(why, sizeof why, "the upgrade was refused: %.*s", (int)(size < 350 ? size : 350), bytes);
            drop(c, why);
            return size;
        }
        at = (size_t)(end + 4 - bytes);
        c->state = GREETED;
        if (c->greeting_size) answer(c, c->greeting, c->greeting_size);
        if (!style.ready_size && c->state == GREETED) is_open(c);
    }
    while (size - at >= 2 && c->state != ENDED) {
        const unsigned char *head = (const unsigned char *)bytes + at;
        size_t length = head[1] & 0x7F, start = 2;
        if (length >= 126) {
            start += length == 126 ? 2 : 8;
            if (size - at < start) break;
            length = 0;
            for (size_t i = 2; i < start; i++) length = length << 8 | head[i];
        }
        if (length > BUFFER / 2) {
            drop(c, "a frame larger than this receiver's buffer");
            break;
        }
        if (size - at < start + length) break;
        take_frame(c, bytes + at, bytes + at + start, length);
        at += start + length;
    }
    return at;
}

static void read_some(Connection *c, size_t most) {
    size_t kept = c->tail_size;
    if (kept) memcpy(buffer, c->tail, kept);
    ssize_t got = recv(c->fd, buffer + kept, most < BUFFER - kept ? most : BUFFER - kept, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        drop(c, got ? strerror(errno) : "end of stream");
        return;
    }
    now_real = clock_ns(CLOCK_REALTIME);
    if (!(c->flags & SLOW)) seen.bytes += (uint64_t)got;
    size_t size = kept + (size_t)got, used = take_bytes(c, buffer, size);
    if (c->state == ENDED) return;
    c->tail_size = size - used;
    if (c->tail_size > c->tail_room) must((c->tail = realloc(c->tail, c->tail_room = c->tail_size)) != NULL, "memory");
    if (c->tail_size) memcpy(c->tail, buffer + used, c->tail_size);
    else if (c->tail_room > 65536) { /* idle connections keep nothing */
        free(c->tail);
        c->tail = NULL;
        c->tail_room = 0;
    }
}

static void start(Connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(c->port)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    int one = 1, small = 16384;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    must(c->fd >= 0, "socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->flags & SLOW) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    c->started = clock_ns(CLOCK_MONOTONIC);
    c->state = CONNECTING;
    opening++;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) drop(c, strerror(errno));
    else must(!epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event), "epoll_ctl");
}

static void connected(Connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        drop(c, strerror(error));
        return;
    }
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->state = UPGRADING;
    if (c->flags & RAW) is_open(c);
    else answer(c, c->request, c->request_size);
}

/* ------------------------------------------------------------------------------------------------ orders */

static void order_bytes(void *into, size_t wanted_bytes) {
    size_t have = 0;
    while (have < wanted_bytes) {
        ssize_t n = read(0, (char *)into + have, wanted_bytes - have);
        if (n <= 0) exit(0);
        have += (size_t)n;
    }
}

#define ORDER(type) (__extension__({ type value; order_bytes(&value, sizeof value); value; }))

static void wait_for(int what, double seconds) {
    waiting_for = what;
    deadline = clock_ns(CLOCK_MONOTONIC) + (uint64_t)(seconds * 1e9);
}

static void order_open(void) {
    uint32_t more = ORDER(uint32_t);
    at_once = ORDER(uint32_t);
    double seconds = ORDER(double);
    if (count + more > room) must((all = realloc(all, (room = (count + more) * 2) * sizeof *all)) != NULL, "memory");
    for (uint32_t i = 0; i < more; i++) {
        Connection *c = calloc(1, sizeof *c);
        must(c != NULL, "memory");
        c->joined = round_now + (seen.events > 0);
        c->port = ORDER(uint16_t);
        c->low = ORDER(uint32_t);
        c->high = ORDER(uint32_t);
        c->flags = ORDER(uint8_t);
        c->request_size = ORDER(uint16_t);
        order_bytes(c->request = malloc(c->request_size + 1u), c->request_size);
        c->greeting_size = ORDER(uint16_t);
        order_bytes(c->greeting = malloc(c->greeting_size + 1u), c->greeting_size);
        all[count++] = c;
    }
    memset(open_latency, 0, sizeof open_latency);
    open_started = clock_ns(CLOCK_MONOTONIC);
    wait_for('O', seconds);
}

static void order_report(void) {
    uint64_t fewest = UINT64_MAX, most = 0, slow = 0, ready = 0;
    for (size_t i = 0; i < count; i++) {
        Connection *c = all[i];
        if (c->flags & SLOW) {
            slow += c->state == OPEN;
            continue;
        }
        if (c->state == ENDED) continue;
        ready += c->state == OPEN;
        if (c->events < fewest) fewest = c->events;
        if (c->events > most) most = c->events;
    }
    printf("{\"connections\":%llu,\"slow\":%llu,\"frames\":%llu,\"events\":%llu,\"slow_events\":%llu,\"bytes\":%llu,"
           "\"pings\":%llu,\"fewest\":%llu,\"most\":%llu,\"ended\":%llu,\"slow_ended\":%llu,\"lost_or_disordered\":%llu,"
           "\"repeated\":%llu,\"stray\":%llu,",
           (unsigned long long)ready, (unsigned long long)slow, (unsigned long long)seen.frames,
           (unsigned long long)seen.events, (unsigned long long)seen.slow_events, (unsigned long long)seen.bytes,
           (unsigned long long)seen.pings, (unsigned long long)(fewest == UINT64_MAX ? 0 : fewest), (unsigned long long)most,
           (unsigned long long)seen.ended, (unsigned long long)seen.slow_ended, (unsigned long long)seen.wrong_order,
           (unsigned long long)seen.repeated, (unsigned long long)seen.stray);
    print_histogram("latency_us", seen.latency);
    printf(",\"faults\":[");
    for (int i = 0; i < seen.faults; i++) {
        printf("%s\"", i ? "," : "");
        for (const char *p = seen.fault[i]; *p; p++)
            if (*p == '"' || *p == '\\') printf("\\%c", *p);
            else if ((unsigned char)*p < ' ' || (unsigned char)*p > '~') putchar(' ');
            else putchar(*p);
        printf("\"");
    }
    printf("]}\n");
}

static void close_all(void) {
    for (size_t i = 0; i < count; i++) {
        Connection *c = all[i];
        if (c->state != ENDED && c->state != WAITING) close(c->fd);
        free(c->tail);
        free(c->request);
        free(c->greeting);
        free(c);
    }
    count = next_to_open = opened = opening = ends_count = 0;
}

static void obey(void) {
    switch (ORDER(char)) {
    case 'S':
        order_bytes(style.ready, (size_t)(style.ready_size = ORDER(uint8_t)));
        style.ping_at = ORDER(uint8_t);
        order_bytes(style.ping, (size_t)(style.ping_size = ORDER(uint8_t)));
        order_bytes(style.between, (size_t)(style.between_size = ORDER(uint8_t)));
        order_bytes(style.pong, (size_t)(style.pong_size = ORDER(uint16_t)));
        style.compressed = ORDER(uint8_t);
        printf("{}\n");
        break;
    case 'O':
        order_open();
        return;
    case 'U':
        wanted = ORDER(uint64_t);
        wait_for('U', ORDER(double));
        return;
    case 'R':
        memset(&seen, 0, sizeof seen);
        note_ends();
        for (size_t i = 0; i < count; i++)
            if (!(all[i]->flags & SLOW)) all[i]->events = all[i]->streams = all[i]->carried = 0;
        printf("{}\n");
        break;
    case 'Q':
        order_report();
        break;
    case 'F':
        printf("{\"bytes\":%zu}\n", frame_size);
        fwrite(frame, 1, frame_size, stdout);
        break;
    case 'P':
        slow_per_read = (int)(ORDER(double) * SLOW_READ_MS / 1000);
        printf("{}\n");
        break;
    case 'C':
        close_all();
        printf("{}\n");
        break;
    default:
        exit(2);
    }
    fflush(stdout);
}

static void answer_when_there(void) {
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    if (waiting_for == 'O') {
        int all_tried = next_to_open == count && !opening;
        if (!all_tried && now < deadline) return;
        printf("{\"reached\":%s,\"opened\":%zu,\"seconds\":%.6f,", all_tried && opened == count ? "true" : "false", opened,
               (double)(now - open_started) / 1e9);
        print_histogram("latency_us", open_latency);
        printf("}\n");
    } else {
        if (seen.events < wanted && seen.ended && now + GIVE_UP_NS < deadline) deadline = now + GIVE_UP_NS;
        if (seen.events < wanted && now < deadline) return;
        printf("{\"reached\":%s}\n", seen.events >= wanted ? "true" : "false");
    }
    waiting_for = 0;
    fflush(stdout);
}

int main(void) {
    struct epoll_event events[512], event = {.events = EPOLLIN, .data.ptr = NULL};
    uint64_t slow_due = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    must((buffer = malloc(BUFFER)) != NULL, "memory");
    must((epoll = epoll_create1(0)) >= 0, "epoll_create1");
    must(!epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event), "stdin");
    for (;;) {
        while (next_to_open < count && opening < at_once) start(all[next_to_open++]);
        if (waiting_for) answer_when_there();
        int ready = epoll_wait(epoll, events, 512, slow_per_read ? SLOW_READ_MS : waiting_for ? 20 : 5000);
        for (int i = 0; i < ready; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) {
                obey();
                break; /* an order may have freed what the other events are about; they are reported again */
            }
            if (c->state == CONNECTING) connected(c);
            else if (c->state != ENDED) read_some(c, BUFFER);
        }
        if (slow_per_read && clock_ns(CLOCK_MONOTONIC) >= slow_due) {
            slow_due = clock_ns(CLOCK_MONOTONIC) + SLOW_READ_MS * 1000000ull;
            for (size_t i = 0; i < count; i++)
                if (all[i]->flags & SLOW && all[i]->state == OPEN) read_some(all[i], (size_t)slow_per_read);
        }
    }
}
