/* The hot path of a connection in C: masking, small whole messages, reading and writing a socket,
   and writing to many.

   Optional: everything here exists in Python too, with the same results. wsthread/speedups.py chooses.

   Locks. With the GIL, a thread that comes back from recv() has to get the GIL, and Python lets it wait for that with
   a timeout of some milliseconds, again and again: with hundreds of busy threads most of the time goes into these
   wake-ups. So they wait at a gate of the process first, and only a few of them at a time ask for the GIL: one that
   found nobody there and goes straight on, and those who are called from the queue. A strict order would cost half of
   the throughput with many threads: the next one in the queue is seldom the next one that runs. Nobody waits at the
   gate while holding the GIL, so it cannot deadlock. Without the GIL there is no gate. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { SMALL = 4096 };  /* Bytes that are not worth giving up the GIL for, or a block of memory. */
enum { SMALL_READ = 1088 };  /* Bytes of a small read: on the stack, of which each thread should touch few pages. */
enum { DONT_WAIT = MSG_DONTWAIT | MSG_NOSIGNAL };
enum { BATCH = 64 };  /* Messages that are made at once, or sent at once: more would only wait. */
enum { BATCH_BYTES = 1 << 18 };
enum { CALLED = 4 };  /* Threads from the queue at the GIL. More are fairer, and slower with a thousand that are busy. */

#ifdef Py_GIL_DISABLED
#define GATED_RESTORE(save) PyEval_RestoreThread(save)
#else
#if PY_VERSION_HEX < 0x030D0000
#define IS_FINALIZING _Py_IsFinalizing
#else
#define IS_FINALIZING Py_IsFinalizing
#endif

typedef struct waiter {
    struct waiter *next;
    pthread_cond_t cond;
    int called;
} waiter;

static struct {
    pthread_mutex_t mutex;  /* Guards the rest; held for moments. */
    int passing;  /* Whether a thread asks for the GIL that went straight on, ... */
    int called;  /* ... and how many do that were called. */
    waiter *first, **end;  /* The queue. */
} gate = {PTHREAD_MUTEX_INITIALIZER, 0, 0, NULL, &gate.first};

static void restore_gated(PyThreadState *save)
{
    if (IS_FINALIZING()) {  /* Threads that ask for the GIL now end there, and leave no gate. */
        PyEval_RestoreThread(save);
        return;
    }
    pthread_mutex_lock(&gate.mutex);
    const int waits = gate.passing;
    if (waits) {
        waiter self = {NULL, PTHREAD_COND_INITIALIZER, 0};
        *gate.end = &self;
        gate.end = &self.next;
        while (!self.called)
            pthread_cond_wait(&self.cond, &gate.mutex);
        pthread_cond_destroy(&self.cond);
    } else
        gate.passing = 1;
    pthread_mutex_unlock(&gate.mutex);

    PyEval_RestoreThread(save);

    pthread_mutex_lock(&gate.mutex);
    if (waits)
        gate.called--;
    else
        gate.passing = 0;
    for (; gate.first != NULL && gate.called < CALLED; gate.called++) {
        waiter *const first = gate.first;
        gate.first = first->next;
        if (gate.first == NULL)
            gate.end = &gate.first;
        first->called = 1;
        pthread_cond_signal(&first->cond);
    }
    pthread_mutex_unlock(&gate.mutex);
}

static void renew_gate(void)  /* In the child of a fork: those at it may be threads that are not there. */
{
    pthread_mutex_init(&gate.mutex, NULL);
    gate.passing = gate.called = 0;
    gate.first = NULL;
    gate.end = &gate.first;
}
#define GATED_RESTORE(save) restore_gated(save)
#endif

/* RFC 6455 5.3, eight octets at a time. */
static void xor_mask(uint8_t *to, const uint8_t *from, Py_ssize_t size, const uint8_t *key)
{
    uint32_t key4;
    memcpy(&key4, key, 4);
    const uint64_t key8 = (uint64_t)key4 << 32 | key4;
    Py_ssize_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t octets;
        memcpy(&octets, from + i, 8);
        octets ^= key8;
        memcpy(to + i, &octets, 8);
    }
    for (; i < size; i++)
        to[i] = from[i] ^ key[i & 3];
}

static PyObject *mask(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    char *payload, *key;
    Py_ssize_t size, key_size;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "mask(payload, key)");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &payload, &size) < 0 || PyBytes_AsStringAndSize(args[1], &key, &key_size) < 0)
        return NULL;
    if (key_size != 4) {
        PyErr_SetString(PyExc_ValueError, "a masking key has 4 bytes");
        return NULL;
    }
    PyObject *result = PyBytes_FromStringAndSize(NULL, size);
    if (result != NULL)
        xor_mask((uint8_t *)PyBytes_AS_STRING(result), (uint8_t *)payload, size, (uint8_t *)key);
    return result;
}

static PyObject *mask_in_place(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "mask_in_place(octets, key)");
        return NULL;
    }
    char *key;
    Py_ssize_t key_size;
    if (PyBytes_AsStringAndSize(args[1], &key, &key_size) < 0)
        return NULL;
    if (key_size != 4) {
        PyErr_SetString(PyExc_ValueError, "a masking key has 4 bytes");
        return NULL;
    }
    Py_buffer octets;
    if (PyObject_GetBuffer(args[0], &octets, PyBUF_WRITABLE) < 0)
        return NULL;
    xor_mask(octets.buf, octets.buf, octets.len, (uint8_t *)key);
    PyBuffer_Release(&octets);
    Py_RETURN_NONE;
}

/* A whole, valid, masked, unfragmented and uncompressed TEXT or BINARY frame. */
typedef struct {
    const uint8_t *key, *octets;
    Py_ssize_t length;
} whole_frame;

static int find_frame(const uint8_t *at, Py_ssize_t available, uint64_t max_size, whole_frame *found)
{
    if (available < 6 || (at[0] != 0x81 && at[0] != 0x82) || !(at[1] & 0x80))  /* FIN, nothing reserved; masked. */
        return 0;
    uint64_t length = at[1] & 0x7f;  /* Where Py_ssize_t has 32 bits, a frame may still announce more. */
    Py_ssize_t header = 6;
    if (length == 126) {
        if (available < 8)
            return 0;
        length = at[2] << 8 | at[3];
        header = 8;
    } else if (length == 127) {
        if (available < 14 || at[2] & 0x80)
            return 0;
        length = 0;
        for (int i = 2; i < 10; i++)
            length = length << 8 | at[i];
        header = 14;
    }
    if (length > max_size || length > (uint64_t)(available - header))
        return 0;
    *found = (whole_frame){at + header - 4, at + header, (Py_ssize_t)length};
    return 1;
}

/* The payload of a TEXT frame; NULL without an error set when it is not UTF-8: Python tells that better. */
static PyObject *read_text(const whole_frame *frame)
{
    uint8_t small[SMALL], *octets = frame->length <= SMALL ? small : PyMem_Malloc(frame->length);
    if (octets == NULL)
        return PyErr_NoMemory();
    xor_mask(octets, frame->octets, frame->length, frame->key);
    PyObject *text = PyUnicode_DecodeUTF8((const char *)octets, frame->length, NULL);
    if (octets != small)
        PyMem_Free(octets);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        PyErr_Clear();
    return text;
}

static PyObject *read_binary(const whole_frame *frame)
{
    PyObject *payload = PyBytes_FromStringAndSize(NULL, frame->length);
    if (payload != NULL)
        xor_mask((uint8_t *)PyBytes_AS_STRING(payload), frame->octets, frame->length, frame->key);
    return payload;
}

/* Steals the payload. */
static PyObject *new_message(PyTypeObject *type, PyObject *opcode, PyObject *payload)
{
    PyObject *message = type->tp_alloc(type, 2);
    if (message == NULL) {
        Py_DECREF(payload);
        return NULL;
    }
    PyTuple_SET_ITEM(message, 0, Py_NewRef(opcode));
    PyTuple_SET_ITEM(message, 1, payload);
    return message;
}

static PyObject *read_messages(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 6 || !PyType_Check(args[3]) || !PyType_IsSubtype((PyTypeObject *)args[3], &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "read_messages(buffer, start, max_size, message_type, text, binary)");
        return NULL;
    }
    char *buffer;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(args[0], &buffer, &size) < 0)
        return NULL;
    Py_ssize_t start = PyLong_AsSsize_t(args[1]);
    const uint64_t max_size = args[2] == Py_None ? UINT64_MAX : PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (start < 0 || start > size) {
        PyErr_SetString(PyExc_ValueError, "start is outside of the buffer");
        return NULL;
    }
    PyObject *messages = PyList_New(0);
    if (messages == NULL)
        return NULL;
    whole_frame frame;
    for (int n = 0; n < BATCH && find_frame((uint8_t *)buffer + start, size - start, max_size, &frame); n++) {
        const int is_text = ((uint8_t *)buffer)[start] == 0x81;
        PyObject *payload = is_text ? read_text(&frame) : read_binary(&frame);
        if (payload == NULL && !PyErr_Occurred())
            break;
        PyObject *message = NULL;
        if (payload != NULL)
            message = new_message((PyTypeObject *)args[3], args[is_text ? 4 : 5], payload);
        if (message == NULL || PyList_Append(messages, message) < 0) {
            Py_XDECREF(message);
            Py_DECREF(messages);
            return NULL;
        }
        Py_DECREF(message);
        start = (char *)frame.octets + frame.length - buffer;
    }
    return Py_BuildValue("(Nn)", messages, start);
}

/* The octets of a message; NULL if they are not at hand, or too many. */
static const void *find_octets(PyObject *payload, Py_ssize_t limit, Py_ssize_t *length)
{
    const void *octets = NULL;
    if (PyUnicode_Check(payload) && PyUnicode_IS_COMPACT_ASCII(payload)) {  /* Its octets are there, as UTF-8. */
        octets = PyUnicode_DATA(payload);
        *length = PyUnicode_GET_LENGTH(payload);
    } else if (PyBytes_Check(payload)) {
        octets = PyBytes_AS_STRING(payload);
        *length = PyBytes_GET_SIZE(payload);
    }
    return octets != NULL && *length <= limit ? octets : NULL;
}

/* Before the octets of a message, unmasked as a server sends it; returns its size. */
static int write_header(uint8_t *header, PyObject *payload, Py_ssize_t length)
{
    header[0] = PyUnicode_Check(payload) ? 0x81 : 0x82;
    if (length < 126) {
        header[1] = (uint8_t)length;
        return 2;
    }
    header[1] = 126;
    header[2] = (uint8_t)(length >> 8);
    header[3] = (uint8_t)length;
    return 4;
}

/* A message as one frame. */
static PyObject *encode_message(PyObject *self, PyObject *payload)
{
    Py_ssize_t length;
    const void *octets = find_octets(payload, (1 << 16) - 1, &length);
    if (octets == NULL)
        Py_RETURN_NONE;
    uint8_t header[4];
    const int header_size = write_header(header, payload, length);
    PyObject *result = PyBytes_FromStringAndSize(NULL, header_size + length);
    if (result != NULL) {
        memcpy(PyBytes_AS_STRING(result), header, header_size);
        memcpy(PyBytes_AS_STRING(result) + header_size, octets, length);
    }
    return result;
}

/* recv(), again after signals; -1 with errno, or -2 with a Python error from a signal handler. */
static Py_ssize_t receive(int fd, char *to, Py_ssize_t size, int flags)
{
    for (;;) {
        PyThreadState *save = PyEval_SaveThread();
        const Py_ssize_t got = recv(fd, to, size, flags);
        const int error = errno;
        GATED_RESTORE(save);
        if (got >= 0)
            return got;
        if (error != EINTR) {
            errno = error;
            return -1;
        }
        if (PyErr_CheckSignals() < 0)
            return -2;
    }
}

/* Waits until there is something to receive; 0 with a Python error. */
static int wait_readable(int fd)
{
    struct pollfd polled = {fd, POLLIN, 0};
    for (;;) {
        PyThreadState *save = PyEval_SaveThread();
        const int ready = poll(&polled, 1, -1);
        const int error = errno;
        GATED_RESTORE(save);
        if (ready > 0)
            return 1;
        if (error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return 0;
        }
        if (PyErr_CheckSignals() < 0)
            return 0;
    }
}

static PyObject *recv_bytes(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "recv(fd, size)");
        return NULL;
    }
    const int fd = (int)PyLong_AsLong(args[0]);
    const Py_ssize_t size = PyLong_AsSsize_t(args[1]);
    if (PyErr_Occurred())
        return NULL;
    if (size < 1) {
        PyErr_SetString(PyExc_ValueError, "size is less than 1");
        return NULL;
    }
    if (size <= SMALL_READ) {
        char octets[SMALL_READ];
        const Py_ssize_t got = receive(fd, octets, size, 0);
        if (got >= 0)
            return PyBytes_FromStringAndSize(octets, got);
        return got == -1 ? PyErr_SetFromErrno(PyExc_OSError) : NULL;
    }
    for (;;) {  /* Memory is taken when the bytes are there, and for no more than that. */
        int there = 0;
        if (!wait_readable(fd))
            return NULL;
        ioctl(fd, FIONREAD, &there);
        const Py_ssize_t wanted = there < 1 ? 1 : there < size ? there : size;
        PyObject *result = PyBytes_FromStringAndSize(NULL, wanted);
        if (result == NULL)
            return NULL;
        const Py_ssize_t got = receive(fd, PyBytes_AS_STRING(result), wanted, MSG_DONTWAIT);
        if (got == wanted)
            return result;
        const int again = got == -1 && (errno == EAGAIN || errno == EWOULDBLOCK);
        if (got >= 0)
            _PyBytes_Resize(&result, got);
        else {
            if (got == -1 && !again)
                PyErr_SetFromErrno(PyExc_OSError);
            Py_CLEAR(result);
        }
        if (!again)
            return result;
    }
}

static PyObject *recv_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "recv_into(fd, buffer)");
        return NULL;
    }
    const int fd = (int)PyLong_AsLong(args[0]);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[1], &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    const Py_ssize_t got = receive(fd, buffer.buf, buffer.len, 0);
    PyBuffer_Release(&buffer);
    if (got < 0)
        return got == -1 ? PyErr_SetFromErrno(PyExc_OSError) : NULL;
    return PyLong_FromSsize_t(got);
}

/* Sends what the kernel takes now; returns how many bytes that was, or the negative errno. */
static Py_ssize_t send_now(int fd, const void *from, Py_ssize_t size)
{
    Py_ssize_t sent;
    do
        sent = send(fd, from, size, DONT_WAIT);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return sent;
    return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
}

static PyObject *send_bytes(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "send(fd, data)");
        return NULL;
    }
    const int fd = (int)PyLong_AsLong(args[0]);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer data;
    if (PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t sent;
    if (data.len <= SMALL)  /* It never waits, so giving up the GIL would cost more than it gives. */
        sent = send_now(fd, data.buf, data.len);
    else {
        PyThreadState *save = PyEval_SaveThread();
        sent = send_now(fd, data.buf, data.len);
        GATED_RESTORE(save);
    }
    PyBuffer_Release(&data);
    if (sent < 0) {
        errno = (int)-sent;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSsize_t(sent);
}

static PyObject *send_both(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyBytes_Check(args[1]) || !PyBytes_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "send_both(fd, header, payload)");
        return NULL;
    }
    const int fd = (int)PyLong_AsLong(args[0]);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    struct iovec parts[] = {
        {PyBytes_AS_STRING(args[1]), PyBytes_GET_SIZE(args[1])},
        {PyBytes_AS_STRING(args[2]), PyBytes_GET_SIZE(args[2])},
    };
    struct msghdr both = {.msg_iov = parts, .msg_iovlen = 2};
    Py_ssize_t sent;
    PyThreadState *save = PyEval_SaveThread();
    do
        sent = sendmsg(fd, &both, DONT_WAIT);
    while (sent < 0 && errno == EINTR);
    const int error = errno;
    GATED_RESTORE(save);
    if (sent < 0 && error != EAGAIN && error != EWOULDBLOCK) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSsize_t(sent < 0 ? 0 : sent);
}

/* The base of wsthread.sending.Sender: what decides whether a frame may go straight to the socket, and what counts it.
   The send lock guards all of it, and each write to the socket. */
typedef struct {
    PyObject_HEAD
    PyObject *send_lock;  /* A threading.Lock. */
    Py_ssize_t bytes_sent, messages_sent;
    Py_ssize_t compressed_from;  /* Octets of the shortest message that is compressed. */
    int fd;
    char clear;  /* The connection is OPEN and nothing waits. */
} send_state;

static void send_state_dealloc(send_state *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->send_lock);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef send_state_members[] = {
    {"_send_lock", T_OBJECT_EX, offsetof(send_state, send_lock), 0, NULL},
    {"_bytes_sent", T_PYSSIZET, offsetof(send_state, bytes_sent), 0, NULL},
    {"_messages_sent", T_PYSSIZET, offsetof(send_state, messages_sent), 0, NULL},
    {"_compressed_from", T_PYSSIZET, offsetof(send_state, compressed_from), 0, NULL},
    {"_fd", T_INT, offsetof(send_state, fd), 0, NULL},
    {"_clear", T_BOOL, offsetof(send_state, clear), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot send_state_slots[] = {
    {Py_tp_dealloc, send_state_dealloc},
    {Py_tp_members, send_state_members},
    {Py_tp_doc, "What decides whether a frame may go straight to the socket."},
    {0, NULL},
};

static PyType_Spec send_state_spec = {
    "wsthread._speedups.SendState", sizeof(send_state), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, send_state_slots,
};

typedef struct {
    PyTypeObject *send_state;
    PyObject *acquire, *release;  /* Names. */
} module_state;

/* Gives the send lock back; an error that is set stays. */
static void leave(const module_state *state, send_state *conn)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *result = PyObject_VectorcallMethod(state->release, &conn->send_lock, 1, NULL);
    if (result == NULL)
        PyErr_WriteUnraisable(conn->send_lock);
    Py_XDECREF(result);
    PyErr_Restore(type, value, traceback);
}

/* Takes the send lock if nobody has it and a message of so many octets may go straight to the socket. */
static int enter_clear(const module_state *state, send_state *conn, Py_ssize_t length)
{
    if (length >= conn->compressed_from)  /* It never changes. */
        return 0;
    PyObject *args[] = {conn->send_lock, Py_False};
    PyObject *result = PyObject_VectorcallMethod(state->acquire, args, 2, NULL);
    if (result == NULL)
        PyErr_WriteUnraisable(conn->send_lock);
    const int entered = result == Py_True;
    Py_XDECREF(result);
    if (entered && !conn->clear) {
        leave(state, conn);
        return 0;
    }
    return entered;
}

/* Counts what was sent of a message and gives the send lock back; 0 with a Python error. What is not the usual is
   for Python: an error, and the rest of a frame of which a part was sent. */
static int leave_sent(
    const module_state *state, send_state *conn, Py_ssize_t sent, Py_ssize_t size, const void *frame, PyObject *timeout)
{
    PyObject *result = NULL;
    if (sent == size) {
        conn->bytes_sent += sent;
        conn->messages_sent++;
    } else if (sent < 0) {
        PyObject *error = PyObject_CallFunction(PyExc_OSError, "is", (int)-sent, strerror((int)-sent));
        if (error != NULL)
            result = PyObject_CallMethod((PyObject *)conn, "_break", "N", error);
    } else if (sent > 0) {
        result = timeout == NULL
            ? PyObject_CallMethod((PyObject *)conn, "_keep_rest", "y#n", frame, size, sent)
            : PyObject_CallMethod((PyObject *)conn, "_send_rest", "y#nO", frame, size, sent, timeout);
    }
    const int ok = result != NULL || sent == size || sent == 0;
    if (!ok) {  /* The rest is lost, so nothing may follow. */
        conn->clear = 0;
        shutdown(conn->fd, SHUT_RDWR);
    }
    Py_XDECREF(result);
    leave(state, conn);
    return ok;
}

static PyObject *send_small(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const module_state *state = PyModule_GetState(self);
    if (nargs != 3 || !PyObject_TypeCheck(args[0], state->send_state)) {
        PyErr_SetString(PyExc_TypeError, "send_small(conn, payload, timeout)");
        return NULL;
    }
    send_state *const conn = (send_state *)args[0];
    Py_ssize_t length;
    const void *octets = find_octets(args[1], SMALL, &length);
    if (octets == NULL || !enter_clear(state, conn, length))
        Py_RETURN_FALSE;
    uint8_t frame[4 + SMALL];
    const Py_ssize_t size = write_header(frame, args[1], length) + length;
    memcpy(frame + size - length, octets, length);
    const Py_ssize_t sent = send_now(conn->fd, frame, size);
    if (!leave_sent(state, conn, sent, size, frame, args[2]))
        return NULL;
    return PyBool_FromLong(sent > 0);
}

static PyObject *send_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const module_state *state = PyModule_GetState(self);
    if (nargs != 2 || !PyTuple_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "send_each(connections, frame)");
        return NULL;
    }
    PyObject *const *conns = &PyTuple_GET_ITEM(args[0], 0);
    const Py_ssize_t total = PyTuple_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < total; i++)
        if (!PyObject_TypeCheck(conns[i], state->send_state)) {
            PyErr_SetString(PyExc_TypeError, "a connection is a SendState");
            return NULL;
        }
    const char *const frame = PyBytes_AS_STRING(args[1]);
    const Py_ssize_t size = PyBytes_GET_SIZE(args[1]);
    const Py_ssize_t length = size - (size < 2 + 126 ? 2 : size < 4 + (1 << 16) ? 4 : 10);
    /* Others may wait for these send locks: not too many at once, and not for too long. */
    const Py_ssize_t limit = size > BATCH_BYTES / BATCH ? 1 + BATCH_BYTES / size : BATCH;
    Py_ssize_t whole = 0;
    int ok = 1;
    PyObject *others = PyList_New(0);
    if (others == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < total && ok;) {
        send_state *batch[BATCH];
        Py_ssize_t sent[BATCH], count = 0;
        for (; i < total && count < limit && ok; i++) {
            if (enter_clear(state, (send_state *)conns[i], length))
                batch[count++] = (send_state *)conns[i];
            else
                ok = PyList_Append(others, conns[i]) == 0;
        }
        if (count == 0)
            continue;
        PyThreadState *save = PyEval_SaveThread();
        for (Py_ssize_t k = 0; k < count; k++)
            sent[k] = send_now(batch[k]->fd, frame, size);
        GATED_RESTORE(save);
        /* What may run Python comes last, when the other send locks are free. */
        for (Py_ssize_t k = 0; k < count; k++)
            if (sent[k] == size || sent[k] == 0)
                leave_sent(state, batch[k], sent[k], size, frame, NULL);
        for (Py_ssize_t k = 0; k < count; k++) {
            if (sent[k] == size)
                whole++;
            else {
                PyObject *type, *value, *traceback;  /* Of the first error. */
                PyErr_Fetch(&type, &value, &traceback);
                if (sent[k] != 0 && !leave_sent(state, batch[k], sent[k], size, frame, NULL))
                    ok = 0;
                if (sent[k] <= 0 && ok)
                    ok = PyList_Append(others, (PyObject *)batch[k]) == 0;
                if (type != NULL)
                    PyErr_Restore(type, value, traceback);
            }
        }
    }
    if (!ok) {
        Py_DECREF(others);
        return NULL;
    }
    return Py_BuildValue("(nN)", whole, others);
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef methods[] = {
    {"mask", FAST(mask), "mask(payload, key): XOR bytes with a 4-byte key."},
    {"mask_in_place", FAST(mask_in_place), "mask_in_place(octets, key): the same for a writable buffer."},
    {"read_messages", FAST(read_messages),
     "read_messages(buffer, start, max_size, message_type, text, binary): the messages that begin there and their end.\n\n"
     "Those that are whole, valid, masked, unfragmented and uncompressed, some at most; each a message_type of text or\n"
     "binary and the payload."},
    {"encode_message", encode_message, METH_O,
     "encode_message(payload): a frame; None unless it is short, and bytes or an ASCII str."},
    {"recv", FAST(recv_bytes), "recv(fd, size): wait for bytes; b'' at EOF."},
    {"recv_into", FAST(recv_into), "recv_into(fd, buffer): wait for bytes, return their number; 0 at EOF."},
    {"send", FAST(send_bytes),
     "send(fd, data): write what can be written without waiting; return how many bytes that was."},
    {"send_both", FAST(send_both), "send_both(fd, header, payload): the same for two pieces of bytes."},
    {"send_small", FAST(send_small),
     "send_small(conn, payload, timeout): send a short message if its way is clear; tell whether that was so."},
    {"send_each", FAST(send_each),
     "send_each(connections, frame): send it to those whose way is clear and who want it not compressed; return how\n"
     "many got all of it, and a list of those who got nothing."},
    {NULL, NULL, 0, NULL},
};

static int initialize(PyObject *module)
{
#ifndef Py_GIL_DISABLED
    static int registered = 0;
    if (!registered) {
        registered = 1;
        pthread_atfork(NULL, NULL, renew_gate);
    }
#endif
    module_state *state = PyModule_GetState(module);
    state->acquire = PyUnicode_InternFromString("acquire");
    state->release = PyUnicode_InternFromString("release");
    state->send_state = (PyTypeObject *)PyType_FromModuleAndSpec(module, &send_state_spec, NULL);
    if (state->acquire == NULL || state->release == NULL || state->send_state == NULL)
        return -1;
    return PyModule_AddType(module, state->send_state);
}

static int traverse_module(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(((module_state *)PyModule_GetState(module))->send_state);
    return 0;
}

static int clear_module(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->send_state);
    Py_CLEAR(state->acquire);
    Py_CLEAR(state->release);
    return 0;
}

static void free_module(void *module)
{
    clear_module(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, initialize},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_speedups", "The hot path of a connection in C.", sizeof(module_state), methods, slots,
    traverse_module, clear_module, free_module,
};

PyMODINIT_FUNC PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
