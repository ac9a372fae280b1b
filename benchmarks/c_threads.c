/* A WebSocket server with a blocking thread for each connection, as plain as C allows: what this shape costs when
   nothing but the kernel is in the way. The other servers are compared with it.

       cc -O2 -pthread -o c_threads c_threads.c
       ./c_threads 8000            0: a port that is free; it is printed

   /echo sends back what comes. /fanout sends it to everyone who is at /fanout, one after the other; somebody who does
   not read holds up all of them. It trusts its clients: no UTF-8 is checked, no size limited, no fragment put together
   (they are passed on as they are), and nobody who is silent is found. It is no example of a server. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FIRST_BUFFER = 1 << 16, STACK = 1 << 17 };

struct buffer {
    uint8_t *bytes;
    size_t size, capacity;
};

struct client {
    int fd;
    bool subscribed;
    pthread_mutex_t sending;            /* Frames of two threads must not mix. */
    struct client *next, *previous;     /* Subscribers; guarded by the mutex below. */
    struct buffer in, out;              /* What was read, and the answers to it that leave together. */
};

static pthread_mutex_t subscribers_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct client *subscribers;

static uint8_t *reserve(struct buffer *buffer, size_t more)
{
    if (buffer->size + more > buffer->capacity) {
        buffer->capacity = buffer->size + more;
        buffer->bytes = realloc(buffer->bytes, buffer->capacity);
    }
    return buffer->bytes + buffer->size;
}

static bool send_all(struct client *client, const uint8_t *bytes, size_t size)
{
    pthread_mutex_lock(&client->sending);
    while (size) {
        const ssize_t sent = send(client->fd, bytes, size, MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        bytes += sent;
        size -= sent;
    }
    pthread_mutex_unlock(&client->sending);
    return !size;
}


/* The opening handshake: SHA-1 (RFC 3174) and base64, for the one input length that there is. */

static uint32_t rotate(uint32_t word, int bits)
{
    return word << bits | word >> (32 - bits);
}

static void sha1_block(uint32_t state[5], const uint8_t block[64])
{
    static const uint32_t constants[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
    uint32_t w[80], s[5];
    for (int t = 0; t < 80; t++)
        w[t] = t < 16
            ? (uint32_t)block[4 * t] << 24 | block[4 * t + 1] << 16 | block[4 * t + 2] << 8 | block[4 * t + 3]
            : rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    memcpy(s, state, sizeof s);
    for (int t = 0; t < 80; t++) {
        const int part = t / 20;
        const uint32_t f =
            part == 0 ? (s[1] & s[2]) | (~s[1] & s[3]) :
            part == 2 ? (s[1] & s[2]) | (s[1] & s[3]) | (s[2] & s[3]) : s[1] ^ s[2] ^ s[3];
        const uint32_t first = rotate(s[0], 5) + f + s[4] + w[t] + constants[part];
        s[4] = s[3];
        s[3] = s[2];
        s[2] = rotate(s[1], 30);
        s[1] = s[0];
        s[0] = first;
    }
    for (int i = 0; i < 5; i++)
        state[i] += s[i];
}

/* RFC 6455 4.2.2: the key has 24 characters, the constant has 36, so the padding begins at byte 60 of two blocks. */
static void accept_key(const char key[24], char answer[29])
{
    uint8_t blocks[128] = {0}, digest[21] = {0};
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    memcpy(blocks, key, 24);
    memcpy(blocks + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    blocks[60] = 0x80;
    blocks[126] = 60 * 8 >> 8;
    blocks[127] = 60 * 8 & 0xff;
    sha1_block(state, blocks);
    sha1_block(state, blocks + 64);
    for (int i = 0; i < 20; i++)
        digest[i] = state[i / 4] >> (24 - i % 4 * 8);
    for (int i = 0; i < 28; i++) {
        const uint8_t *three = digest + i / 4 * 3;
        const uint32_t bits = (uint32_t)three[0] << 16 | three[1] << 8 | three[2];
        answer[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[bits >> (18 - i % 4 * 6) & 63];
    }
    answer[27] = '=';
    answer[28] = 0;
}

static bool shake_hands(struct client *client)
{
    static const char name[] = "\r\nSec-WebSocket-Key: ";
    char head[4096] = "", key[29], response[256];
    size_t size = 0;
    while (!strstr(head, "\r\n\r\n")) {
        const ssize_t got = recv(client->fd, head + size, sizeof head - 1 - size, 0);
        if (got <= 0)
            return false;
        size += got;
        head[size] = 0;
    }
    const char *found = strcasestr(head, name);
    if (!found || strcspn(found + sizeof name - 1, "\r") != 24)
        return false;
    accept_key(found + sizeof name - 1, key);
    client->subscribed = !strncmp(head, "GET /fanout ", 12);
    const int length = snprintf(
        response, sizeof response,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: %s\r\n\r\n", key);
    return send_all(client, (uint8_t *)response, length);
}


/* Frames */

static void unmask(uint8_t *to, const uint8_t *from, size_t size, const uint8_t key[4])
{
    uint64_t twice;
    memcpy(&twice, key, 4);
    memcpy((uint8_t *)&twice + 4, key, 4);
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t eight;
        memcpy(&eight, from + i, 8);
        eight ^= twice;
        memcpy(to + i, &eight, 8);
    }
    for (; i < size; i++)
        to[i] = from[i] ^ key[i % 4];
}

/* The size of the frame that begins here, header included, as far as that can be seen yet; *header without the key. */
static size_t frame_size(const uint8_t *frame, size_t available, size_t *header)
{
    *header = 2;
    if (available < 2)
        return 2;
    uint64_t length = frame[1] & 0x7f;
    if (length >= 126) {
        *header = length == 126 ? 4 : 10;
        if (available < *header)
            return *header;
        length = 0;
        for (size_t i = 2; i < *header; i++)
            length = length << 8 | frame[i];
    }
    return *header + 4 + length;
}

static void deliver(const uint8_t *frame, size_t size)
{
    pthread_mutex_lock(&subscribers_mutex);
    for (struct client *one = subscribers; one; one = one->next)
        send_all(one, frame, size);
    pthread_mutex_unlock(&subscribers_mutex);
}

/* Answer a whole frame; false after a Close. */
static bool answer(struct client *client, const uint8_t *frame, size_t size, size_t header)
{
    struct buffer *out = &client->out;
    const int opcode = frame[0] & 0x0f;
    const size_t begin = out->size, payload = size - header - 4;
    uint8_t *to = reserve(out, header + payload);
    memcpy(to, frame, header);
    to[1] &= 0x7f;
    unmask(to + header, frame + header + 4, payload, frame + header);
    if (opcode == 9)
        to[0] = 0x8a;
    if (opcode == 10)
        return true;
    if (client->subscribed && opcode < 8) {
        deliver(to, header + payload);
        out->size = begin;
        return true;
    }
    out->size += header + payload;
    return opcode != 8;
}

/* Answer the whole frames that were read, in one write; false when the connection is over. */
static bool answer_all(struct client *client)
{
    struct buffer *in = &client->in;
    size_t at = 0, header, needed = 0;
    bool open = true;
    while (open && (needed = frame_size(in->bytes + at, in->size - at, &header)) <= in->size - at) {
        if (needed < header + 4)  /* As much of the header as was asked for is there; the size is not known yet. */
            break;
        open = answer(client, in->bytes + at, needed, header);
        at += needed;
    }
    if (client->out.size && !send_all(client, client->out.bytes, client->out.size))
        open = false;
    client->out.size = 0;
    memmove(in->bytes, in->bytes + at, in->size - at);
    in->size -= at;
    reserve(in, needed > in->size + FIRST_BUFFER ? needed - in->size : FIRST_BUFFER);
    return open;
}

static void subscribe(struct client *client, bool joins)
{
    pthread_mutex_lock(&subscribers_mutex);
    if (joins) {
        client->next = subscribers;
        if (subscribers)
            subscribers->previous = client;
        subscribers = client;
    } else {
        if (client->previous)
            client->previous->next = client->next;
        else
            subscribers = client->next;
        if (client->next)
            client->next->previous = client->previous;
    }
    pthread_mutex_unlock(&subscribers_mutex);
}

static void *serve(void *argument)
{
    struct client *client = argument;
    if (shake_hands(client)) {
        if (client->subscribed)
            subscribe(client, true);
        reserve(&client->in, FIRST_BUFFER);
        for (bool open = true; open;) {
            struct buffer *in = &client->in;
            const ssize_t got = recv(client->fd, in->bytes + in->size, in->capacity - in->size, 0);
            if (got <= 0)
                break;
            in->size += got;
            open = answer_all(client);
        }
        if (client->subscribed)
            subscribe(client, false);
    }
    close(client->fd);
    free(client->in.bytes);
    free(client->out.bytes);
    free(client);
    return NULL;
}

static int listen_at(int port)
{
    const int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)
            || getsockname(listener, (struct sockaddr *)&address, &length)) {
        perror("c_threads");
        exit(1);
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    const int listener = listen_at(argc > 1 ? atoi(argv[1]) : 0), yes = 1;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    for (;;) {
        pthread_t thread;
        struct client *client = calloc(1, sizeof *client);
        client->fd = accept(listener, NULL, NULL);
        pthread_mutex_init(&client->sending, NULL);
        setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        if (client->fd < 0 || pthread_create(&thread, &attributes, serve, client)) {
            close(client->fd);
            free(client);
        }
    }
}
