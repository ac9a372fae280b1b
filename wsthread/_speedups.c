/* The hot path of a connection in C: masking, small whole messages, reading and writing a socket,
   and writing to many.

   Optional: wsthread/speedups.py has a Python version and the contract of everything here, and chooses. The results are
   the same. Nobody else calls this, but whatever it is called with, it raises an error at worst. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "gate.h"

enum { SMALL = 4096 };  /* Bytes that are not worth giving up the GIL for, or a block of memory. */
enum { SMALL_READ = 1088 };  /* Bytes of a small read: on the stack, of which each thread should touch few pages. */
enum { DONT_WAIT = MSG_DONTWAIT | MSG_NOSIGNAL };
enum { BATCH = 64 };  /* Messages that are made at once, or sent at once: more would only wait. */
enum { BATCH_BYTES = 1 << 18 };

#define CONTRACT "See the Python version in wsthread/speedups.py."

typedef struct {
    PyTypeObject *send_state;
    PyObject *message_type;  /* The first type that was found to be one for messages. */
    PyObject *acquire, *release, *make_tuple;  /* Two names, and tuple.__new__. */
} module_state;

/* An int as a number of bytes: one that is too large becomes the largest. -1 may be an error. */
static Py_ssize_t read_size(PyObject *number)
{
    const Py_ssize_t size = PyLong_AsSsize_t(number);
    if (size != -1 || !PyErr_Occurred() || !PyErr_ExceptionMatches(PyExc_OverflowError))
        return size;
    PyErr_Clear();
    return PyNumber_AsSsize_t(number, NULL);
}

/* RFC 6455 5.3, eight bytes at a time. */
static void xor_mask(uint8_t *to, const uint8_t *from, Py_ssize_t size, const uint8_t *key)
{
    uint32_t key4;
    memcpy(&key4, key, 4);
    const uint64_t key8 = (uint64_t)key4 << 32 | key4;
    Py_ssize_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t bytes;
        memcpy(&bytes, from + i, 8);
        bytes ^= key8;
        memcpy(to + i, &bytes, 8);
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
        PyErr_SetString(PyExc_TypeError, "mask_in_place(buffer, key)");
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
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    xor_mask(buffer.buf, buffer.buf, buffer.len, (uint8_t *)key);
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

/* A whole, valid, masked, unfragmented and uncompressed TEXT or BINARY frame. */
typedef struct {
    const uint8_t *key, *bytes;
    Py_ssize_t length;
} whole_frame;

static int find_frame(const uint8_t *at, Py_ssize_t available, Py_ssize_t max_size, whole_frame *found)
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
    if (length > (uint64_t)max_size || length > (uint64_t)(available - header))
        return 0;
    *found = (whole_frame){at + header - 4, at + header, (Py_ssize_t)length};
    return 1;
}

/* The payload of a TEXT frame; NULL without an error set when it is not UTF-8: Python tells that better. */
static PyObject *read_text(const whole_frame *frame)
{
    uint8_t small[SMALL], *bytes = frame->length <= SMALL ? small : PyMem_Malloc(frame->length);
    if (bytes == NULL)
        return PyErr_NoMemory();
    xor_mask(bytes, frame->bytes, frame->length, frame->key);
    PyObject *text = PyUnicode_DecodeUTF8((const char *)bytes, frame->length, NULL);
    if (bytes != small)
        PyMem_Free(bytes);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        PyErr_Clear();
    return text;
}

static PyObject *read_binary(const whole_frame *frame)
{
    PyObject *payload = PyBytes_FromStringAndSize(NULL, frame->length);
    if (payload != NULL)
        xor_mask((uint8_t *)PyBytes_AS_STRING(payload), frame->bytes, frame->length, frame->key);
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

/* Whether objects of a type may be made as tuples are, else with an error: time.struct_time may not. */
static int check_message_type(module_state *state, PyObject *type)
{
    if (type == state->message_type)
        return 1;
    PyObject *empty = PyObject_CallOneArg(state->make_tuple, type);
    if (empty == NULL)
        return 0;
    Py_DECREF(empty);
    if (state->message_type == NULL)
        state->message_type = Py_NewRef(type);
    return 1;
}

static PyObject *read_messages(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "read_messages(buffer, start, max_size, message_type, text, binary)");
        return NULL;
    }
    if (!check_message_type(PyModule_GetState(self), args[3]))
        return NULL;
    char *buffer;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(args[0], &buffer, &size) < 0)
        return NULL;
    Py_ssize_t start = read_size(args[1]);
    const Py_ssize_t max_size = args[2] == Py_None ? PY_SSIZE_T_MAX : read_size(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (max_size < 0) {
        PyErr_SetString(PyExc_ValueError, "max_size is negative");
        return NULL;
    }
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
        start = (char *)frame.bytes + frame.length - buffer;
    }
    return Py_BuildValue("(Nn)", messages, start);
}

/* The bytes of a message; NULL if they are not at hand, or too many. */
static const void *find_bytes(PyObject *payload, Py_ssize_t limit, Py_ssize_t *length)
{
    const void *bytes = NULL;
    if (PyUnicode_Check(payload) && PyUnicode_IS_COMPACT_ASCII(payload)) {  /* Its bytes are there, as UTF-8. */
        bytes = PyUnicode_DATA(payload);
        *length = PyUnicode_GET_LENGTH(payload);
    } else if (PyBytes_Check(payload)) {
        bytes = PyBytes_AS_STRING(payload);
        *length = PyBytes_GET_SIZE(payload);
    }
    return bytes != NULL && *length <= limit ? bytes : NULL;
}

/* Before the bytes of a message, unmasked as a server sends it; returns its size. */
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
    const void *bytes = find_bytes(payload, (1 << 16) - 1, &length);
    if (bytes == NULL)
        Py_RETURN_NONE;
    uint8_t header[4];
    const int header_size = write_header(header, payload, length);
    PyObject *result = PyBytes_FromStringAndSize(NULL, header_size + length);
    if (result != NULL) {
        memcpy(PyBytes_AS_STRING(result), header, header_size);
        memcpy(PyBytes_AS_STRING(result) + header_size, bytes, length);
    }
    return result;
}

/* The descriptor that is given as a handle; -1 with a Python error. */
static int read_fd(PyObject *handle)
{
    int overflow;
    const long fd = PyLong_AsLongAndOverflow(handle, &overflow);
    if (fd == -1 && !overflow && PyErr_Occurred())
        return -1;
    if (overflow || fd < 0 || fd > INT_MAX) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return (int)fd;
}

/* Whether a handle and a number of bytes to receive make sense, else with a Python error. */
static int read_request(PyObject *const *args, int *fd, Py_ssize_t *size)
{
    *size = read_size(args[1]);
    if (*size < 1) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "size is less than 1");
        return 0;
    }
    *fd = read_fd(args[0]);
    return *fd >= 0;
}

/* recv(), again after signals; -1 with errno, or -2 with a Python error from a signal handler. */
static Py_ssize_t receive(int fd, char *to, Py_ssize_t size, int flags)
{
    for (;;) {
        PyThreadState *save = save_gated();
        const Py_ssize_t got = recv(fd, to, size, flags);
        const int error = errno;
        restore_gated(save);
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
        PyThreadState *save = save_gated();
        const int ready = poll(&polled, 1, -1);
        const int error = errno;
        restore_gated(save);
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
        PyErr_SetString(PyExc_TypeError, "recv(handle, size)");
        return NULL;
    }
    int fd;
    Py_ssize_t size;
    if (!read_request(args, &fd, &size))
        return NULL;
    if (size <= SMALL_READ) {
        char bytes[SMALL_READ];
        const Py_ssize_t got = receive(fd, bytes, size, 0);
        if (got >= 0)
            return PyBytes_FromStringAndSize(bytes, got);
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
        PyErr_SetString(PyExc_TypeError, "recv_into(handle, buffer)");
        return NULL;
    }
    const int fd = read_fd(args[0]);
    Py_buffer buffer;
    if (fd < 0 || PyObject_GetBuffer(args[1], &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    if (buffer.len == 0) {
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "the buffer is empty");
        return NULL;
    }
    const Py_ssize_t got = receive(fd, buffer.buf, buffer.len, 0);
    PyBuffer_Release(&buffer);
    if (got < 0)
        return got == -1 ? PyErr_SetFromErrno(PyExc_OSError) : NULL;
    return PyLong_FromSsize_t(got);
}

/* Without giving up the GIL: the thread that calls it for many connections would have to get it back for each. */
static PyObject *recv_now(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "recv_now(handle, size)");
        return NULL;
    }
    int fd, there = 0;
    Py_ssize_t size;
    if (!read_request(args, &fd, &size))
        return NULL;
    char small[SMALL_READ];
    if (size > SMALL_READ)
        ioctl(fd, FIONREAD, &there);
    PyObject *result = NULL;  /* Memory is taken for no more than is there. */
    Py_ssize_t wanted = size < SMALL_READ ? size : SMALL_READ;
    if (there > SMALL_READ) {
        wanted = there < size ? there : size;
        result = PyBytes_FromStringAndSize(NULL, wanted);
        if (result == NULL)
            return NULL;
    }
    Py_ssize_t got;
    do
        got = recv(fd, result == NULL ? small : PyBytes_AS_STRING(result), wanted, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0) {
        const int error = errno;
        Py_XDECREF(result);
        if (error == EAGAIN || error == EWOULDBLOCK)
            Py_RETURN_NONE;
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (result == NULL)
        return PyBytes_FromStringAndSize(small, got);
    if (got < wanted)
        _PyBytes_Resize(&result, got);
    return result;
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
        PyErr_SetString(PyExc_TypeError, "send(handle, data)");
        return NULL;
    }
    const int fd = read_fd(args[0]);
    Py_buffer data;
    if (fd < 0 || PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t sent;
    if (data.len <= SMALL)  /* It never waits, so giving up the GIL would cost more than it gives. */
        sent = send_now(fd, data.buf, data.len);
    else {
        PyThreadState *save = save_gated();
        sent = send_now(fd, data.buf, data.len);
        restore_gated(save);
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
        PyErr_SetString(PyExc_TypeError, "send_both(handle, header, payload)");
        return NULL;
    }
    const int fd = read_fd(args[0]);
    if (fd < 0)
        return NULL;
    struct iovec parts[] = {
        {PyBytes_AS_STRING(args[1]), PyBytes_GET_SIZE(args[1])},
        {PyBytes_AS_STRING(args[2]), PyBytes_GET_SIZE(args[2])},
    };
    struct msghdr both = {.msg_iov = parts, .msg_iovlen = 2};
    Py_ssize_t sent;
    PyThreadState *save = save_gated();
    do
        sent = sendmsg(fd, &both, DONT_WAIT);
    while (sent < 0 && errno == EINTR);
    const int error = errno;
    restore_gated(save);
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
    Py_ssize_t compressed_from;  /* Bytes of the shortest message that is compressed, ... */
    int compression;  /* ... and how, if all others may get the same bytes; else 0. */
    int fd;  /* -1: there is none that frames may be written to as they are. */
    char clear;  /* Frames may be sent, and nothing waits that they would overtake. */
} send_state;

static PyObject *send_state_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    send_state *self = (send_state *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->fd = -1;
    return (PyObject *)self;
}

static void send_state_dealloc(send_state *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->send_lock);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *get_fd(send_state *self, void *closure)
{
    return PyLong_FromLong(self->fd);
}

/* Unlike that of a member it never takes a number for another one. */
static int set_fd(send_state *self, PyObject *value, void *closure)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "fd cannot be deleted");
        return -1;
    }
    const long fd = PyLong_AsLong(value);
    if (fd == -1 && PyErr_Occurred())
        return -1;
    if (fd < -1 || fd > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "fd is no descriptor, nor -1");
        return -1;
    }
    self->fd = (int)fd;
    return 0;
}

static PyMemberDef send_state_members[] = {
    {"send_lock", T_OBJECT_EX, offsetof(send_state, send_lock), 0, NULL},
    {"bytes_sent", T_PYSSIZET, offsetof(send_state, bytes_sent), 0, NULL},
    {"messages_sent", T_PYSSIZET, offsetof(send_state, messages_sent), 0, NULL},
    {"compressed_from", T_PYSSIZET, offsetof(send_state, compressed_from), 0, NULL},
    {"compression", T_INT, offsetof(send_state, compression), 0, NULL},
    {"clear", T_BOOL, offsetof(send_state, clear), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef send_state_getset[] = {
    {"fd", (getter)get_fd, (setter)set_fd, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot send_state_slots[] = {
    {Py_tp_new, send_state_new},
    {Py_tp_dealloc, send_state_dealloc},
    {Py_tp_members, send_state_members},
    {Py_tp_getset, send_state_getset},
    {Py_tp_doc, CONTRACT},
    {0, NULL},
};

static PyType_Spec send_state_spec = {
    "wsthread._speedups.SendState", sizeof(send_state), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, send_state_slots,
};

/* A state whose send lock was taken, and what became of the frame. */
typedef struct {
    send_state *conn;  /* Borrowed. */
    PyObject *lock;  /* The one that was taken, whatever the state says later. */
    int fd;
    Py_ssize_t index, sent;
} entered;

/* Gives the send lock back; an error that is set stays. */
static void leave(const module_state *state, entered *conn)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *result = PyObject_VectorcallMethod(state->release, &conn->lock, 1, NULL);
    if (result == NULL)
        PyErr_WriteUnraisable(conn->lock);
    Py_XDECREF(result);
    Py_CLEAR(conn->lock);
    PyErr_Restore(type, value, traceback);
}

/* Takes the send lock if nobody has it and a message of so many bytes may go straight to the socket, compressed in that
   way, or 0. Returns whether that was so, -1 with a Python error. */
static int enter_clear(
    const module_state *state, send_state *conn, Py_ssize_t length, int compression, entered *to)
{
    const int is_compressed = length >= conn->compressed_from;  /* It never changes, nor does the next. */
    if (is_compressed != (compression != 0) || (is_compressed && compression != conn->compression))
        return 0;
    if (conn->send_lock == NULL) {
        PyErr_SetString(PyExc_AttributeError, "send_lock");
        return -1;
    }
    to->conn = conn;
    to->lock = Py_NewRef(conn->send_lock);
    PyObject *args[] = {to->lock, Py_False};
    PyObject *result = PyObject_VectorcallMethod(state->acquire, args, 2, NULL);
    Py_XDECREF(result);
    if (result != Py_True) {
        Py_CLEAR(to->lock);
        return result == NULL ? -1 : 0;
    }
    to->fd = conn->fd;
    /* Where a counter is about to be full Python counts, and raises OverflowError. */
    const int countable = conn->bytes_sent < PY_SSIZE_T_MAX / 2 && conn->messages_sent < PY_SSIZE_T_MAX;
    if (conn->clear && to->fd >= 0 && countable)
        return 1;
    leave(state, to);
    return 0;
}

/* Counts what was sent of a frame and gives the send lock back; 0 with a Python error. What is not the usual is for
   Python: an error, and the rest of a frame of which a part was sent. */
static int leave_sent(const module_state *state, entered *to, Py_ssize_t size, PyObject *frame, PyObject *timeout)
{
    const Py_ssize_t sent = to->sent;
    PyObject *const conn = (PyObject *)to->conn, *result = NULL;
    if (sent == size) {
        to->conn->bytes_sent += sent;
        to->conn->messages_sent++;
    } else if (sent < 0) {
        PyObject *error = PyObject_CallFunction(PyExc_OSError, "is", (int)-sent, strerror((int)-sent));
        if (error != NULL)
            result = PyObject_CallMethod(conn, "broke", "N", error);
    } else if (sent > 0 && frame != NULL) {
        result = timeout == NULL
            ? PyObject_CallMethod(conn, "keep_rest", "On", frame, sent)
            : PyObject_CallMethod(conn, "send_rest", "OnO", frame, sent, timeout);
    }
    const int ok = result != NULL || sent == size || sent == 0;
    if (!ok) {  /* The rest is lost, so nothing may follow. */
        to->conn->clear = 0;
        shutdown(to->conn->fd, SHUT_RDWR);
    }
    Py_XDECREF(result);
    leave(state, to);
    return ok;
}

static PyObject *send_small(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const module_state *state = PyModule_GetState(self);
    if (nargs != 3 || !PyObject_TypeCheck(args[0], state->send_state)) {
        PyErr_SetString(PyExc_TypeError, "send_small(state, payload, timeout)");
        return NULL;
    }
    Py_ssize_t length;
    const void *bytes = find_bytes(args[1], SMALL, &length);
    if (bytes == NULL)
        Py_RETURN_FALSE;
    entered conn;
    const int clear = enter_clear(state, (send_state *)args[0], length, 0, &conn);
    if (clear < 0)
        return NULL;
    if (!clear)
        Py_RETURN_FALSE;
    char frame[4 + SMALL];
    const Py_ssize_t size = write_header((uint8_t *)frame, args[1], length) + length;
    memcpy(frame + size - length, bytes, length);
    conn.sent = send_now(conn.fd, frame, size);
    PyObject *const copy = conn.sent > 0 && conn.sent < size ? PyBytes_FromStringAndSize(frame, size) : NULL;
    const int ok = leave_sent(state, &conn, size, copy, args[2]);
    Py_XDECREF(copy);
    return ok ? PyBool_FromLong(conn.sent > 0) : NULL;
}

/* The first Python error of several. */
typedef struct {
    PyObject *type, *value, *traceback;
} failure;

static void note_error(failure *first)
{
    if (first->type == NULL)
        PyErr_Fetch(&first->type, &first->value, &first->traceback);
    else
        PyErr_Clear();
}

static int append_index(PyObject *list, Py_ssize_t index)
{
    PyObject *number = PyLong_FromSsize_t(index);
    const int ok = number != NULL && PyList_Append(list, number) == 0;
    Py_XDECREF(number);
    return ok;
}

static PyObject *send_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const module_state *state = PyModule_GetState(self);
    if (nargs != 4 || !PyTuple_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "send_each(states, frame, length, compression)");
        return NULL;
    }
    PyObject *const *conns = &PyTuple_GET_ITEM(args[0], 0);
    const Py_ssize_t total = PyTuple_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < total; i++)
        if (!PyObject_TypeCheck(conns[i], state->send_state)) {
            PyErr_SetString(PyExc_TypeError, "not a SendState");
            return NULL;
        }
    const char *const frame = PyBytes_AS_STRING(args[1]);
    const Py_ssize_t size = PyBytes_GET_SIZE(args[1]);
    if (size < 2) {
        PyErr_SetString(PyExc_ValueError, "a frame has at least 2 bytes");
        return NULL;
    }
    const Py_ssize_t length = PyLong_AsSsize_t(args[2]);
    const long compression = PyLong_AsLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    /* Others may wait for these send locks: not too many at once, and not for too long. */
    const Py_ssize_t limit = size > BATCH_BYTES / BATCH ? 1 + BATCH_BYTES / size : BATCH;
    Py_ssize_t whole = 0;
    failure first_error = {NULL, NULL, NULL};
    PyObject *missed = PyList_New(0);
    if (missed == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < total;) {
        entered batch[BATCH];
        const Py_ssize_t first = i;
        Py_ssize_t count = 0;
        for (; i < total && count < limit; i++) {
            send_state *const conn = (send_state *)conns[i];
            const int clear = enter_clear(state, conn, length, (int)compression, &batch[count]);
            if (clear > 0)
                batch[count++].index = i;
            else if (clear < 0)
                note_error(&first_error);
        }
        if (count != 0) {
            PyThreadState *save = save_gated();
            for (Py_ssize_t k = 0; k < count; k++)
                batch[k].sent = send_now(batch[k].fd, frame, size);
            restore_gated(save);
        }
        /* What may run Python comes last, when the other send locks are free. */
        for (Py_ssize_t k = 0; k < count; k++)
            if (batch[k].sent == size || batch[k].sent == 0)
                leave_sent(state, &batch[k], size, args[1], NULL);
        for (Py_ssize_t k = 0, j = first; j < i; j++) {
            Py_ssize_t sent = 0;
            if (k < count && batch[k].index == j) {
                sent = batch[k].sent;
                if (sent != size && sent != 0 && !leave_sent(state, &batch[k], size, args[1], NULL))
                    note_error(&first_error);
                k++;
            }
            if (sent == size)
                whole++;
            else if (sent <= 0 && !append_index(missed, j))
                note_error(&first_error);
        }
    }
    if (first_error.type != NULL) {
        Py_DECREF(missed);
        PyErr_Restore(first_error.type, first_error.value, first_error.traceback);
        return NULL;
    }
    return Py_BuildValue("(nN)", whole, missed);
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef methods[] = {
    {"mask", FAST(mask), CONTRACT},
    {"mask_in_place", FAST(mask_in_place), CONTRACT},
    {"read_messages", FAST(read_messages), CONTRACT},
    {"encode_message", encode_message, METH_O, CONTRACT},
    {"recv", FAST(recv_bytes), CONTRACT},
    {"recv_into", FAST(recv_into), CONTRACT},
    {"recv_now", FAST(recv_now), CONTRACT},
    {"send", FAST(send_bytes), CONTRACT},
    {"send_both", FAST(send_both), CONTRACT},
    {"send_small", FAST(send_small), CONTRACT},
    {"send_each", FAST(send_each), CONTRACT},
    {NULL, NULL, 0, NULL},
};

static int initialize(PyObject *module)
{
    open_gate();
    module_state *state = PyModule_GetState(module);
    state->acquire = PyUnicode_InternFromString("acquire");
    state->release = PyUnicode_InternFromString("release");
    state->send_state = (PyTypeObject *)PyType_FromModuleAndSpec(module, &send_state_spec, NULL);
    state->make_tuple = PyObject_GetAttrString((PyObject *)&PyTuple_Type, "__new__");
    if (!state->acquire || !state->release || !state->send_state || !state->make_tuple)
        return -1;
    return PyModule_AddType(module, state->send_state);
}

static int traverse_module(PyObject *module, visitproc visit, void *arg)
{
    const module_state *state = PyModule_GetState(module);
    Py_VISIT(state->send_state);
    Py_VISIT(state->message_type);
    Py_VISIT(state->make_tuple);
    return 0;
}

static int clear_module(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->send_state);
    Py_CLEAR(state->message_type);
    Py_CLEAR(state->make_tuple);
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
