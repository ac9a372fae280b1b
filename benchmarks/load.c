/* A load generator for WebSocket servers on this machine: one thread, epoll, nothing but the C library.

       cc -O2 -o load load.c
       ./load echo --port 8000 -c 100 -s 32 -d 2

   Modes
       echo      each of -c connections keeps -f messages of -s bytes in flight; what comes back is compared
       fanout    of -c subscribers the first one publishes; the next message follows when everyone has the last one.
                 --stuck more subscribers never read
       rate      -r messages per second, on which -c connections take turns, go out when they are due, whether or not
                 answers came. Those that are due while it measures count, if they are answered within a second after
       connect   -c connections at a time: opening handshake, closing handshake, and again
       hold      -c connections are opened, and nothing more

   What it prints are JSON objects, one a line: {"event": "start", ...} when all is open and warm, then, but for hold,
   {"event": "result", ...}. After that it keeps the connections as long as its standard input is open, and reads there
   what to do with them, one word a line; each is answered by one object:
       ping       one Ping to each, --opening of them at a time, and the Pongs
       broadcast  the first one publishes one message, as in fanout
       closes     wait until the server has closed all of them

   A message is a stamp, who sent it and its number, and then a piece of one random text, another piece for another
   number. So each byte that should come is known without being kept, and a message that is cut, changed, repeated,
   left out, or sent to the wrong connection is an error, as is every frame that RFC 6455 forbids. Pings are answered.

   Latency is counted from the moment when the message was ready to be sent, which in rate is when it was due, until its
   last byte was read. What the kernel does not take is kept until it does: nothing blocks. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { STAMP = 12, SHIFTS = 512, BUFFER = 1 << 18, ENOUGH = 16 << 20, PER_SOURCE = 20000, SECOND = 1000000000 };
enum { BATCH = 64 };                            /* In rate: messages that are sent before it reads again. */
enum { CONTINUATION, TEXT, BINARY, CLOSE = 8, PING, PONG };
enum mode { ECHO, FANOUT, RATE, CONNECT, HOLD };
enum phase { UNUSED, CONNECTING, HANDSHAKE, OPEN, ENDED };

struct connection {
    int fd, id, close_code;             /* close_code: of the server's Close, 0 before. */
    enum phase phase;
    bool stuck, wants_write, close_sent, ponged, synced;
    /* The frame and the message that are being read. */
    uint8_t header[10], control[125], stamp[STAMP];
    size_t header_size, frame_at, message_at;
    uint64_t frame_size;
    bool in_frame, in_message;
    /* What was sent and what has come. */
    uint64_t sent, received, in_window;
    uint64_t *sent_at;                  /* A ring of in_flight times, in echo. */
    uint64_t since;                     /* When this phase, or in connect this cycle, began. */
    uint8_t *out;                       /* What the kernel did not take yet is from out_start to out_end. */
    size_t out_start, out_end, out_capacity;
};

/* The options. */
static enum mode mode;
static int port = 8000, wanted = 1, in_flight = 1, stuck, rate = 1000, opening_at_once = 64, patience = 60;
static int processes[64], process_count;
static size_t size = 32;
static double seconds = 2, warm_up = 0.5;
static uint64_t stop_after;                     /* Messages; 0: the time decides. */
static const char *path = "/echo";
static int data_opcode = TEXT;

/* What is going on. */
static struct connection *connections;
static int count, opening, open_now, epoll;
static uint8_t *text, buffer[BUFFER];
static uint64_t now;
static bool measuring, running, closes_expected;
static uint64_t published, published_at;        /* In fanout: how many messages, and when the last one. */
static uint64_t last_message = UINT64_MAX;      /* How many are to be published. */
static int missing;                             /* Who does not have the last one yet. */
static uint64_t turns;                          /* In rate: how many were taken. */
static uint64_t first_turn, schedule_since;     /* The first one of this schedule, and when it was due. */
static int timer;                               /* It wakes epoll when the next one is due. */

/* What came of it. */
static uint64_t messages, errors, cycles_unclean, last_delivery, longest_silence, last_close, first_close;
static int stuck_ended;
static char first_error[200];

static uint64_t clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + t.tv_nsec;
}

static void note_error(const char *format, ...)
{
    if (errors++)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(first_error, sizeof first_error, format, arguments);
    va_end(arguments);
    for (char *c = first_error; *c; c++)
        if (*c < ' ' || *c == '"' || *c == '\\')
            *c = ' ';
}

/* xorshift64*; nobody has to be kept from guessing it. */
static uint64_t random_number(void)
{
    static uint64_t state;
    if (!state)
        state = clock_now() | 1;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}


/* Latencies: buckets that are 1/64 of their value wide, so that any number of them takes the same memory. */

enum { FINE = 64, BUCKETS = FINE * 59 };
static uint64_t bucket[BUCKETS], latencies, longest;

static void note_latency(uint64_t ns)
{
    int shift = ns < FINE ? 0 : 58 - __builtin_clzll(ns);  /* So that ns >> shift is from 32 to 63. */
    bucket[shift * FINE + (ns >> shift)]++;
    latencies++;
    if (ns > longest)
        longest = ns;
}

/* In microseconds: what a share of the latencies does not exceed. */
static double quantile(double share)
{
    uint64_t rank = share * latencies, seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += bucket[i];
        if (seen > rank)
            return ((double)(i % FINE) + (i < FINE ? 0 : 0.5)) * (double)(UINT64_C(1) << (i / FINE)) / 1000;
    }
    return longest / 1000.0;
}

static void print_latencies(void)
{
    printf(", \"latency_us\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}",
           quantile(0.5), quantile(0.9), quantile(0.99), longest / 1000.0);
}


/* CPU time in seconds: of the server's processes, and of this one. */

static double server_cpu(void)
{
    double sum = 0;
    for (int i = 0; i < process_count; i++) {
        clockid_t clock;
        struct timespec t;
        if (!clock_getcpuclockid(processes[i], &clock) && !clock_gettime(clock, &t))
            sum += t.tv_sec + t.tv_nsec / 1e9;
    }
    return sum;
}

static double own_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}


/* Writing */

static void watch(struct connection *c)
{
    uint32_t reading = c->stuck && c->phase == OPEN ? EPOLLRDHUP : EPOLLIN;
    struct epoll_event event = {
        .events = c->phase == CONNECTING ? EPOLLOUT : reading | (c->wants_write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
}

static void end(struct connection *c)
{
    close(c->fd);
    opening -= c->phase == CONNECTING || c->phase == HANDSHAKE;
    open_now -= c->phase == OPEN;
    c->phase = ENDED;
    c->out_start = c->out_end = 0;
}

static void fail(struct connection *c, const char *what)
{
    note_error("%s (connection %d, message %" PRIu64 ")", what, c->id, c->received);
    end(c);
}

static void hang_up(struct connection *c)
{
    if (c->stuck)
        stuck_ended++;
    else if (mode == CONNECT && c->close_sent)
        cycles_unclean += !c->close_code;
    else if (!c->close_code && !closes_expected) {
        fail(c, "the connection was lost");
        return;
    }
    end(c);
}

static uint8_t *reserve(struct connection *c, size_t bytes)
{
    if (c->out_start == c->out_end)
        c->out_start = c->out_end = 0;
    if (c->out_end + bytes > c->out_capacity) {
        c->out_capacity = c->out_end + bytes;
        c->out = realloc(c->out, c->out_capacity);
    }
    return c->out + c->out_end;
}

static void flush(struct connection *c)
{
    while (c->out_start < c->out_end) {
        ssize_t sent = send(c->fd, c->out + c->out_start, c->out_end - c->out_start, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0) {
            hang_up(c);
            return;
        }
        c->out_start += sent;
    }
    if (c->wants_write != (c->out_start < c->out_end)) {
        c->wants_write = !c->wants_write;
        watch(c);
    }
}

/* RFC 6455 5.3, for a piece that begins where the masking key begins. */
static void mask(uint8_t *to, const uint8_t *from, size_t bytes, uint32_t key)
{
    const uint64_t twice = (uint64_t)key << 32 | key;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t eight;
        memcpy(&eight, from + i, 8);
        eight ^= twice;
        memcpy(to + i, &eight, 8);
    }
    for (; i < bytes; i++)
        to[i] = from[i] ^ ((uint8_t *)&key)[i % 4];
}

/* A frame in two parts, the first of which has a multiple of four bytes unless the second is empty. */
static void add_frame(
    struct connection *c, int opcode, const void *first, size_t first_size, const void *second, size_t second_size)
{
    const size_t payload = first_size + second_size;
    uint8_t *frame = reserve(c, 14 + payload), *at = frame;
    *at++ = 0x80 | opcode;
    if (payload < 126)
        *at++ = 0x80 | payload;
    else if (payload < 65536) {
        *at++ = 0x80 | 126;
        *at++ = payload >> 8;
        *at++ = payload;
    } else {
        *at++ = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            *at++ = (uint64_t)payload >> shift;
    }
    const uint32_t key = random_number() >> 32;
    memcpy(at, &key, 4);
    mask(at + 4, first, first_size, key);
    mask(at + 4 + first_size, second, second_size, key);
    c->out_end += at + 4 + payload - frame;
}

/* Message number `number` of connection `id`: its stamp, and where in the text the rest of it is. */
static const uint8_t *message(int id, uint64_t number, uint8_t stamp[STAMP])
{
    uint64_t left = (uint64_t)(id & 0xffff) << 32 | (number & 0xffffffff);
    for (int i = STAMP; i--; left >>= 4)
        stamp[i] = "0123456789abcdef"[left & 15];
    return text + (number * 7 + id) % SHIFTS;
}

static void add_message(struct connection *c, int id, uint64_t number)
{
    uint8_t stamp[STAMP];
    const uint8_t *rest = message(id, number, stamp);
    add_frame(c, data_opcode, stamp, STAMP, rest, size - STAMP);
}

static void add_echo(struct connection *c)
{
    c->sent_at[c->sent % in_flight] = now;
    add_message(c, c->id, c->sent++);
}

/* In rate, and anew when the measurement begins: what was late in the warm-up must not make that late too. */
static void start_schedule(void)
{
    first_turn = turns;
    schedule_since = now;
}

static uint64_t due_at(uint64_t turn)
{
    return schedule_since + (turn - first_turn) * SECOND / rate;
}

/* Send a batch of what is due before `until`, and set the timer. */
static void send_due(uint64_t until)
{
    for (int i = 0; i < BATCH && due_at(turns) < until; i++, turns++) {
        struct connection *c = &connections[turns % count];
        if (c->phase != OPEN)
            continue;
        add_message(c, c->id, c->sent++);
        flush(c);
    }
    const uint64_t next = due_at(turns);
    const struct itimerspec once = {.it_value = {.tv_sec = next / SECOND, .tv_nsec = next % SECOND}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &once, NULL);
}

static void add_close(struct connection *c, int code)
{
    const uint8_t payload[2] = {code >> 8, code};
    add_frame(c, CLOSE, payload, code ? 2 : 0, NULL, 0);
    c->close_sent = true;
}

static void publish(void)
{
    missing = 0;
    for (int i = 0; i < wanted; i++)
        missing += connections[i].phase == OPEN;
    now = published_at = clock_now();
    if (connections[0].phase != OPEN)
        return;
    add_message(&connections[0], 0, published++);
    flush(&connections[0]);
}


/* Reading. A function that returns false has ended the connection. */

static bool take_delivery(struct connection *c)
{
    if (now - last_delivery > longest_silence)
        longest_silence = now - last_delivery;
    last_delivery = now;
    if (c->received == published)
        missing--;
    if (measuring) {
        messages++;
        c->in_window++;
        note_latency(now - published_at);
    }
    return true;
}

static bool take_message(struct connection *c)
{
    if (c->message_at != size) {
        fail(c, "a message is too short");
        return false;
    }
    const uint64_t number = c->received++, turn = number * count + c->id;
    if (mode == FANOUT || mode == HOLD)
        return take_delivery(c);
    if (measuring && turn >= first_turn) {
        messages++;
        c->in_window++;
        note_latency(now - (mode == RATE ? due_at(turn) : c->sent_at[number % in_flight]));
    }
    if (mode == ECHO && running)
        add_echo(c);
    return true;
}

/* Learn from the stamp of a subscriber's first message which one it is. */
static void sync_to(struct connection *c)
{
    char digits[9] = "";
    memcpy(digits, c->stamp + STAMP - 8, 8);
    c->received = strtoull(digits, NULL, 16);
    c->synced = true;
}

/* Bytes of a message's payload. */
static bool take_data(struct connection *c, const uint8_t *data, size_t bytes)
{
    if (bytes > size - c->message_at) {
        fail(c, "a message is too long");
        return false;
    }
    const size_t for_stamp = c->message_at < STAMP ? STAMP - c->message_at : 0;
    const size_t in_stamp = bytes < for_stamp ? bytes : for_stamp;
    memcpy(c->stamp + c->message_at, data, in_stamp);
    c->message_at += bytes;
    if (c->message_at < STAMP)
        return true;
    const bool broadcast = mode == FANOUT || mode == HOLD;
    if (broadcast && !c->synced)
        sync_to(c);
    uint8_t stamp[STAMP];
    const uint8_t *rest = message(broadcast ? 0 : c->id, c->received, stamp);
    const size_t rest_at = c->message_at - STAMP - (bytes - in_stamp);
    const bool sent = c->received < (broadcast ? published : c->sent);
    if (sent && (!in_stamp || !memcmp(c->stamp, stamp, STAMP)) &&
            !memcmp(data + in_stamp, rest + rest_at, bytes - in_stamp))
        return true;
    fail(c, sent ? "a message is not what was sent" : "a message came that nobody sent");
    return false;
}

static bool take_close(struct connection *c)
{
    c->close_code = c->frame_size >= 2 ? c->control[0] << 8 | c->control[1] : 1005;
    last_close = now;
    if (!first_close)
        first_close = now;
    if (!c->close_sent) {
        if (!closes_expected)
            note_error("the server closed connection %d with %d", c->id, c->close_code);
        add_close(c, c->close_code == 1005 ? 0 : c->close_code);
    }
    return true;
}

static bool take_frame(struct connection *c)
{
    c->in_frame = false;
    c->header_size = c->frame_at = 0;
    switch (c->header[0] & 0x0f) {
    case PING:
        add_frame(c, PONG, c->control, c->frame_size, NULL, 0);
        return true;
    case PONG:
        c->ponged = true;
        return true;
    case CLOSE:
        return take_close(c);
    }
    if (!(c->header[0] & 0x80))
        return true;
    c->in_message = false;
    return take_message(c);
}

static const char *what_is_wrong(struct connection *c)
{
    const int opcode = c->header[0] & 0x0f;
    if (c->close_code)
        return "there is a frame after the Close";
    if (c->header[0] & 0x70 || (opcode > BINARY && opcode < CLOSE) || opcode > PONG)
        return "a frame has reserved bits or a reserved opcode";
    if (c->header[1] & 0x80)
        return "a frame is masked";
    if (opcode >= CLOSE)
        return c->header[0] & 0x80 && c->frame_size <= 125 ? NULL : "a control frame is fragmented or too long";
    if (c->in_message != (opcode == CONTINUATION))
        return "a fragment is missing";
    if (opcode != CONTINUATION && opcode != data_opcode)
        return "a message came back as another kind";
    if (mode == CONNECT)
        return "a message came that nobody sent";
    return NULL;
}

/* Return how many bytes belong to the header; when they are all there, in_frame is set. */
static size_t take_header(struct connection *c, const uint8_t *data, size_t bytes)
{
    size_t used = 0;
    while (used < bytes) {
        c->header[c->header_size++] = data[used++];
        const int length = c->header[1] & 0x7f, needed = length == 127 ? 10 : length == 126 ? 4 : 2;
        if (c->header_size < 2 || c->header_size < (size_t)needed)
            continue;
        c->frame_size = needed == 2 ? length : 0;
        for (int i = 2; i < needed; i++)
            c->frame_size = c->frame_size << 8 | c->header[i];
        c->in_frame = true;
        break;
    }
    return used;
}

static void feed(struct connection *c, const uint8_t *data, size_t bytes)
{
    while (bytes) {
        if (!c->in_frame) {
            const size_t used = take_header(c, data, bytes);
            data += used;
            bytes -= used;
            if (!c->in_frame)
                return;
            const char *wrong = what_is_wrong(c);
            if (wrong) {
                fail(c, wrong);
                return;
            }
            const int opcode = c->header[0] & 0x0f;
            if (opcode == data_opcode)
                c->message_at = 0;
            c->in_message |= opcode < CLOSE;
        }
        const size_t left = c->frame_size - c->frame_at, piece = bytes < left ? bytes : left;
        if ((c->header[0] & 0x0f) >= CLOSE)
            memcpy(c->control + c->frame_at, data, piece);
        else if (piece && !take_data(c, data, piece))
            return;
        c->frame_at += piece;
        data += piece;
        bytes -= piece;
        if (c->frame_at == c->frame_size && !take_frame(c))
            return;
    }
}

static void on_readable(struct connection *c)
{
    const ssize_t got = recv(c->fd, buffer, BUFFER, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    now = clock_now();
    if (got <= 0) {
        hang_up(c);
        return;
    }
    feed(c, buffer, got);
    if (c->phase == OPEN)
        flush(c);
}


/* The opening handshake, with the key of the example in RFC 6455 1.3: what has to come back is known. */

static void begin(struct connection *c)
{
    const struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    /* One address has too few ports for many connections, or many closed ones. */
    static unsigned int turn;
    const unsigned int sources = mode == CONNECT ? 8 : 1 + count / PER_SOURCE;
    const struct sockaddr_in from = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + turn++ % sources)};
    const int yes = 1, little = 4096;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    c->phase = CONNECTING;
    c->since = clock_now();
    c->close_code = 0;
    c->wants_write = c->close_sent = c->in_frame = c->in_message = false;
    c->header_size = c->frame_at = 0;
    opening++;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (c->stuck)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    if (c->fd < 0 || bind(c->fd, (struct sockaddr *)&from, sizeof from)
            || (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
            || epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) {
        note_error("connecting: %s", strerror(errno));
        end(c);
    }
}

static void on_connected(struct connection *c)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        note_error("connecting: %s", strerror(error));
        end(c);
        return;
    }
    char request[512];
    const int bytes = snprintf(
        request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path, port);
    memcpy(reserve(c, bytes), request, bytes);
    c->out_end += bytes;
    c->phase = HANDSHAKE;
    watch(c);
    flush(c);
}

/* Only the head is taken out of the kernel: what follows it is read like everything after it. */
static void on_response(struct connection *c)
{
    char head[4097];
    ssize_t got = recv(c->fd, head, sizeof head - 1, MSG_PEEK);
    if (got < 0 && errno == EAGAIN)
        return;
    head[got > 0 ? got : 0] = 0;
    const char *end_of_head = strstr(head, "\r\n\r\n");
    if (!end_of_head && got > 0 && got < (ssize_t)sizeof head - 1)
        return;
    if (!end_of_head || strncmp(head, "HTTP/1.1 101 ", 13)
            || !strcasestr(head, "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n")) {
        note_error("the handshake was answered with %.*s", (int)strcspn(head, "\r\n"), got > 0 ? head : "a hang-up");
        end(c);
        return;
    }
    got = recv(c->fd, head, end_of_head + 4 - head, 0);
    c->phase = OPEN;
    opening--;
    open_now++;
    watch(c);
    if (mode == CONNECT) {
        add_close(c, 1000);
        flush(c);
    }
}


/* Time */

static void poll_events(int milliseconds)
{
    struct epoll_event events[256];
    const int ready = epoll_wait(epoll, events, 256, milliseconds);
    for (int i = 0; i < ready; i++) {
        struct connection *c = events[i].data.ptr;
        if (c == NULL)  /* Standard input, or the timer. */
            continue;
        if (c->phase == CONNECTING)
            on_connected(c);
        else if (c->phase == HANDSHAKE)
            on_response(c);
        else if (c->phase == OPEN) {
            if (events[i].events & EPOLLOUT)
                flush(c);
            if (c->phase == OPEN && events[i].events & ~EPOLLOUT) {
                if (c->stuck)
                    hang_up(c);
                else
                    on_readable(c);
            }
        }
    }
    now = clock_now();
}

static double open_all(void)
{
    const uint64_t since = now = clock_now(), until = since + (uint64_t)patience * SECOND;
    int begun = 0;
    while ((begun < count || opening) && now < until) {
        while (begun < count && opening < opening_at_once)
            begin(&connections[begun++]);
        poll_events(20);
    }
    if (open_now < count)
        note_error("%d of %d connections are open after %.0f s", open_now, count, (now - since) / 1e9);
    return (now - since) / 1e9;
}

/* In connect: begin those again that have ended, and end those that the server leaves open after the Close. */
static void renew(void)
{
    for (int i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        if (c->phase == OPEN && now - c->since > 2 * (uint64_t)SECOND) {
            cycles_unclean++;
            end(c);
        }
        if (c->phase != ENDED)
            continue;
        if (measuring && c->close_sent) {
            messages++;
            note_latency(now - c->since);
        }
        c->close_sent = false;
        begin(c);
    }
}

/* In rate: return when all is sent that is due before `until`, which is later if there was no CPU for this process. */
static void keep_schedule(uint64_t until)
{
    while (now < until || due_at(turns) < until) {
        send_due(now < until ? now : until);
        poll_events(1);
    }
}

static void run_until(uint64_t until)
{
    if (mode == RATE)
        keep_schedule(until);
    while ((now = clock_now()) < until && (published < last_message || missing > 0)) {
        const uint64_t left = (until - now) / (SECOND / 1000);
        poll_events(left > 10 ? 10 : (int)left);
        if (mode == CONNECT)
            renew();
        if (mode == FANOUT && running && missing <= 0 && published < last_message)
            publish();
    }
}

/* Publish until each subscriber has got something: some servers know a subscriber only some time after the 101. */
static void sync_subscribers(void)
{
    int unsynced = wanted;
    for (int attempt = 0; attempt < 5 && unsynced; attempt++) {
        run_until(clock_now() + SECOND / 5);
        publish();
        const uint64_t until = now + 5 * (uint64_t)SECOND;
        while (missing > 0 && now < until)
            poll_events(10);
        unsynced = 0;
        for (int i = 0; i < wanted; i++)
            unsynced += !connections[i].synced;
    }
    if (unsynced || missing > 0)
        note_error("%d of %d subscribers get nothing", unsynced ? unsynced : missing, wanted);
    missing = 0;
}


/* The measurement */

static void print_start(double opened_in)
{
    printf("{\"event\": \"start\", \"open\": %d, \"open_s\": %.3f, \"errors\": %" PRIu64 ", \"error\": \"%s\"}\n",
           open_now, opened_in, errors, first_error);
    fflush(stdout);
}

static void print_result(double elapsed, double server, double own)
{
    int starved = 0;
    for (int i = 0; i < wanted; i++)
        starved += !connections[i].in_window;
    printf("{\"event\": \"result\", \"ok\": %s, \"messages\": %" PRIu64 ", \"seconds\": %.4f, \"rate\": %.1f",
           errors ? "false" : "true", messages, elapsed, messages / elapsed);
    if (process_count)
        printf(", \"server_busy\": %.3f, \"server_cpu_us\": %.3f",
               server / elapsed, messages ? server * 1e6 / messages : 0);
    printf(", \"load_busy\": %.3f", own / elapsed);
    print_latencies();
    if (mode == CONNECT)
        printf(", \"unclean\": %" PRIu64, cycles_unclean);
    else
        printf(", \"connections\": %d, \"starved\": %d, \"bytes_per_s\": %.0f", wanted, starved,
               (double)messages * size / elapsed);
    if (mode == RATE)
        printf(", \"due\": %" PRIu64 ", \"answered\": %.6f", turns - first_turn,
               turns > first_turn ? (double)messages / (turns - first_turn) : 0);
    if (mode == FANOUT)
        printf(", \"published\": %" PRIu64 ", \"longest_silence_ms\": %.1f, \"stuck\": %d, \"stuck_ended\": %d",
               published, longest_silence / 1e6, stuck, stuck_ended);
    printf(", \"errors\": %" PRIu64 ", \"error\": \"%s\"}\n", errors, first_error);
    fflush(stdout);
}

/* Go on until the kernel can hold no more for those who are stuck: only then it matters what the server does. */
static void fill_stuck(void)
{
    const uint64_t until = now + 20 * (uint64_t)SECOND;
    last_delivery = now;
    while (published * size < ENOUGH && now < until && now - last_delivery < 2 * (uint64_t)SECOND)
        run_until(now + SECOND / 50);
}

static void start_traffic(void)
{
    if (mode == FANOUT)
        sync_subscribers();
    running = true;
    now = clock_now();
    start_schedule();
    for (int i = 0; i < count && mode == ECHO; i++)
        if (connections[i].phase == OPEN) {
            for (int k = 0; k < in_flight; k++)
                add_echo(&connections[i]);
            flush(&connections[i]);
        }
    run_until(now + (uint64_t)(warm_up * SECOND));
    if (stuck && !stop_after)
        fill_stuck();
}

/* In rate: what comes in this second is late, and what does not is missing. */
static void await_answers(void)
{
    const uint64_t until = now + SECOND;
    while (messages < turns - first_turn && now < until)
        poll_events(10);
}

static void measure(double opened_in)
{
    start_traffic();
    print_start(opened_in);
    if (stop_after)
        last_message = published + stop_after;
    const double server = server_cpu(), own = own_cpu();
    const uint64_t since = last_delivery = now = clock_now();
    cycles_unclean = longest_silence = 0;
    start_schedule();
    measuring = true;
    run_until(since + (uint64_t)(seconds * SECOND));
    const double elapsed = (now - since) / 1e9, server_used = server_cpu() - server, own_used = own_cpu() - own;
    running = false;
    if (mode == FANOUT && missing > 0 && now - last_delivery > longest_silence)
        longest_silence = now - last_delivery;
    if (mode == RATE)
        await_answers();
    measuring = false;
    print_result(elapsed, server_used, own_used);
}


/* What standard input asks for */

static void ping_all(void)
{
    const uint64_t since = clock_now(), until = since + (uint64_t)patience * SECOND;
    int asked = 0, waiting = 0, alive = 0;
    for (int i = 0; i < count; i++)
        connections[i].ponged = false;
    while ((asked < count || waiting) && now < until) {
        for (; asked < count && waiting < opening_at_once; asked++)
            if (connections[asked].phase == OPEN) {
                add_frame(&connections[asked], PING, "alive?", 6, NULL, 0);
                flush(&connections[asked]);
                waiting++;
            }
        poll_events(20);
        waiting = alive = 0;
        for (int i = 0; i < asked; i++) {
            alive += connections[i].ponged;
            waiting += connections[i].phase == OPEN && !connections[i].ponged;
        }
    }
    printf("{\"event\": \"ping\", \"alive\": %d, \"seconds\": %.3f}\n", alive, (now - since) / 1e9);
}

static void broadcast_once(void)
{
    const uint64_t until = clock_now() + (uint64_t)patience * SECOND;
    memset(bucket, 0, sizeof bucket);
    latencies = longest = 0;
    measuring = true;
    publish();
    while (missing > 0 && now < until)
        poll_events(20);
    measuring = false;
    printf("{\"event\": \"broadcast\", \"delivered\": %" PRIu64 ", \"seconds\": %.4f", latencies,
           (now - published_at) / 1e9);
    print_latencies();
    printf("}\n");
}

/* Answered twice: at once, so that the asker knows that they are expected, and when there is nothing left. */
static void wait_closes(void)
{
    static int codes[65536];
    printf("{\"event\": \"waiting\", \"open\": %d}\n", open_now);
    fflush(stdout);
    closes_expected = true;
    first_close = last_close = 0;
    const uint64_t since = now = clock_now(), until = since + (uint64_t)patience * SECOND;
    while (open_now && now < until)
        poll_events(20);
    for (int i = 0; i < count; i++)
        codes[connections[i].close_code]++;
    printf("{\"event\": \"closes\", \"codes\": {\"none\": %d", codes[0]);
    for (int code = 1; code < 65536; code++)
        if (codes[code])
            printf(", \"%d\": %d", code, codes[code]);
    printf("}, \"first_s\": %.3f, \"last_s\": %.3f, \"left\": %d, \"seconds\": %.3f}\n",
           first_close ? (first_close - since) / 1e9 : 0, last_close ? (last_close - since) / 1e9 : 0, open_now,
           (now - since) / 1e9);
}

static void obey(void)
{
    char command[32];
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};  /* It wakes, and is then looked at by select(). */
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);                /* Fails for /dev/null, which is at its end anyway. */
    for (;;) {
        fd_set set;
        struct timeval at_once = {0};
        FD_ZERO(&set);
        FD_SET(0, &set);
        if (select(1, &set, NULL, NULL, &at_once) > 0) {
            const ssize_t got = read(0, command, sizeof command - 1);
            if (got <= 0)
                return;
            command[got] = 0;
            if (!strcmp(command, "ping\n"))
                ping_all();
            else if (!strcmp(command, "broadcast\n"))
                broadcast_once();
            else if (!strcmp(command, "closes\n"))
                wait_closes();
            else
                printf("{\"event\": \"unknown\"}\n");
            fflush(stdout);
        } else
            poll_events(1000);
    }
}


/* The command line */

static void usage(void)
{
    fprintf(stderr,
            "usage: load echo|fanout|rate|connect|hold [options]\n"
            "  --port N       of the server on 127.0.0.1 (8000)   --path PATH     (/echo)\n"
            "  -c N           connections (1)                     -s BYTES        size of a message, %d or more (32)\n"
            "  -f N           echo: in flight per connection (1)  -b              binary messages\n"
            "  -r N           rate: messages per second in all (1000)\n"
            "  -d SECONDS     to measure (2)                      -w SECONDS      to warm up before (0.5)\n"
            "  -n N           fanout: stop after so many messages\n"
            "  --stuck N      fanout: subscribers that never read\n"
            "  --pids A,B     the server's processes, for their CPU time\n"
            "  --opening N    handshakes, or Pings, at a time (64)\n"
            "  --patience N   seconds for opening all, and for each command (60)\n", STAMP);
    exit(2);
}

static enum mode mode_named(const char *name)
{
    static const char *names[] = {"echo", "fanout", "rate", "connect", "hold"};
    for (int i = 0; i < 5; i++)
        if (!strcmp(name, names[i]))
            return i;
    usage();
    return 0;
}

static void read_options(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"port", 1, NULL, 'P'}, {"path", 1, NULL, 'p'}, {"stuck", 1, NULL, 'S'}, {"pids", 1, NULL, 'i'},
        {"opening", 1, NULL, 'o'}, {"patience", 1, NULL, 'a'}, {NULL, 0, NULL, 0}};
    if (argc < 2)
        usage();
    mode = mode_named(argv[1]);
    int option;
    while ((option = getopt_long(argc - 1, argv + 1, "c:s:f:r:d:w:n:b", long_options, NULL)) != -1)
        switch (option) {
        case 'P': port = atoi(optarg); break;
        case 'p': path = optarg; break;
        case 'c': wanted = atoi(optarg); break;
        case 's': size = strtoul(optarg, NULL, 10); break;
        case 'f': in_flight = atoi(optarg); break;
        case 'r': rate = atoi(optarg); break;
        case 'b': data_opcode = BINARY; break;
        case 'd': seconds = atof(optarg); break;
        case 'w': warm_up = atof(optarg); break;
        case 'n': stop_after = strtoull(optarg, NULL, 10); break;
        case 'S': stuck = atoi(optarg); break;
        case 'o': opening_at_once = atoi(optarg); break;
        case 'a': patience = atoi(optarg); break;
        case 'i':
            for (char *pid = strtok(optarg, ","); pid && process_count < 64; pid = strtok(NULL, ","))
                processes[process_count++] = atoi(pid);
            break;
        default: usage();
        }
    if (wanted < 1 || in_flight < 1 || rate < 1 || stuck < 0 || opening_at_once < 1 || seconds <= 0)
        usage();
    if (size < STAMP || size > 1 << 30)
        usage();
}

static void prepare(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    text = malloc(size + SHIFTS);
    for (size_t i = 0; i < size + SHIFTS; i++)
        text[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz.0123456789"[random_number() >> 58];
    count = wanted + (mode == FANOUT ? stuck : 0);
    connections = calloc(count, sizeof *connections);
    for (int i = 0; i < count; i++) {
        connections[i].id = i;
        connections[i].stuck = i >= wanted;
        connections[i].phase = mode == CONNECT ? ENDED : UNUSED;
        connections[i].sent_at = calloc(in_flight, sizeof(uint64_t));
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);  /* epoll_wait() itself counts in milliseconds. */
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    prepare();
    const double opened_in = mode == CONNECT ? 0 : open_all();
    if (mode == HOLD)
        print_start(opened_in);
    else
        measure(opened_in);
    obey();
    return errors ? 1 : 0;
}
