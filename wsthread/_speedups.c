/* The hot path of a connection in C: masking, small whole messages, and reading and writing a socket.

   Optional: everything here exists in Python too, with the same results. wsthread/speedups.py chooses.

   Locks. With the GIL, a thread that comes back from recv() has to get the GIL, and Python lets it wait for that with
   a timeout of some milliseconds, again and again: with hundreds of busy threads most of the time goes into these
   wake-ups. So they wait at a mutex of the process first, the gate, and only one of them at a time asks for the GIL.
   The gate does not keep their order; one that does costs more throughput than that is worth. Nobody takes the gate
   while holding the GIL, so it cannot deadlock. Without the GIL there is no gate. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { SMALL = 4096 };  /* Bytes that are not worth giving up the GIL for, or a block of memory. */
enum { FIRST = 1088 };  /* Bytes of a first read: on the stack, of which each thread should touch few pages. */
enum { BATCH = 64 };  /* Messages that are made at once; more would only wait in memory. */

#ifdef Py_GIL_DISABLED
#define GATED_RESTORE(save) PyEval_RestoreThread(save)
#else
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void restore_gated(PyThreadState *save)
{
    pthread_mutex_lock(&gate);
    PyEval_RestoreThread(save);
    pthread_mutex_unlock(&gate);
}

static void renew_gate(void)  /* In the child of a fork: the holder may be a thread that is not there. */
{
    pthread_mutex_init(&gate, NULL);
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

/* A message as one frame, unmasked as a server sends it. */
static PyObject *encode_message(PyObject *self, PyObject *payload)
{
    const void *octets;
    Py_ssize_t length;
    if (PyUnicode_Check(payload) && PyUnicode_IS_COMPACT_ASCII(payload)) {  /* Its octets are there, as UTF-8. */
        octets = PyUnicode_DATA(payload);
        length = PyUnicode_GET_LENGTH(payload);
    } else if (PyBytes_Check(payload)) {
        octets = PyBytes_AS_STRING(payload);
        length = PyBytes_GET_SIZE(payload);
    } else
        Py_RETURN_NONE;
    if (length >= 1 << 16)
        Py_RETURN_NONE;
    const Py_ssize_t header = length < 126 ? 2 : 4;
    PyObject *result = PyBytes_FromStringAndSize(NULL, header + length);
    if (result == NULL)
        return NULL;
    uint8_t *frame = (uint8_t *)PyBytes_AS_STRING(result);
    frame[0] = PyUnicode_Check(payload) ? 0x81 : 0x82;
    if (header == 2)
        frame[1] = (uint8_t)length;
    else {
        frame[1] = 126;
        frame[2] = (uint8_t)(length >> 8);
        frame[3] = (uint8_t)length;
    }
    memcpy(frame + header, octets, length);
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
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "size is negative");
        return NULL;
    }
    char first[FIRST];
    Py_ssize_t got = receive(fd, first, size < FIRST ? size : FIRST, 0);
    if (got < FIRST || got == size) {
        if (got >= 0)
            return PyBytes_FromStringAndSize(first, got);
        return got == -1 ? PyErr_SetFromErrno(PyExc_OSError) : NULL;
    }
    int more;  /* The kernel knows, so memory is taken for no more than that. */
    if (ioctl(fd, FIONREAD, &more) < 0 || more <= 0)
        return PyBytes_FromStringAndSize(first, got);
    if (more > size - FIRST)
        more = (int)(size - FIRST);
    PyObject *result = PyBytes_FromStringAndSize(NULL, FIRST + (Py_ssize_t)more);
    if (result == NULL)
        return NULL;
    memcpy(PyBytes_AS_STRING(result), first, FIRST);
    got = receive(fd, PyBytes_AS_STRING(result) + FIRST, more, MSG_DONTWAIT);
    if (got == -2) {
        Py_DECREF(result);
        return NULL;
    }
    if (got < more)  /* An error or EOF will come again with the next read. */
        _PyBytes_Resize(&result, FIRST + (got > 0 ? got : 0));
    return result;
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

static PyObject *send_bytes(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "send(fd, data, flags)");
        return NULL;
    }
    const int fd = (int)PyLong_AsLong(args[0]);
    const int flags = (int)PyLong_AsLong(args[2]) | MSG_DONTWAIT | MSG_NOSIGNAL;
    if (PyErr_Occurred())
        return NULL;
    Py_buffer data;
    if (PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t sent;
    int error;
    if (data.len <= SMALL) {  /* It never waits, so giving up the GIL would cost more than it gives. */
        do
            sent = send(fd, data.buf, data.len, flags);
        while (sent < 0 && errno == EINTR);
        error = errno;
    } else {
        PyThreadState *save = PyEval_SaveThread();
        do
            sent = send(fd, data.buf, data.len, flags);
        while (sent < 0 && errno == EINTR);
        error = errno;
        GATED_RESTORE(save);
    }
    PyBuffer_Release(&data);
    if (sent < 0) {
        if (error == EAGAIN || error == EWOULDBLOCK)
            return PyLong_FromLong(0);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSsize_t(sent);
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
     "send(fd, data, flags): write what can be written without waiting; return how many bytes that was."},
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
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, initialize},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_speedups", "The hot path of a connection in C.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
