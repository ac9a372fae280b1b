/* The hot path of a connection in C: masking, small whole messages, and reading and writing a socket.

   Optional: everything here exists in Python too, with the same results. wsthread/speedups.py chooses.

   Locks. With the GIL, a thread that comes back from recv() has to get the GIL, and Python lets it wait for that with
   a timeout of some milliseconds, again and again: with hundreds of busy threads most of the time goes into these
   wake-ups. So they queue at a mutex of the process first, the gate, and only the first in the queue asks for the GIL.
   Nobody takes the gate while holding the GIL, so it cannot deadlock. Without the GIL there is no gate. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

enum { SMALL = 4096 };  /* Bytes that are read or written in one go, without giving up anything for it. */

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

/* The octets of a TEXT message, or NULL without an error set when they are not UTF-8: Python tells that better. */
static PyObject *decode(const uint8_t *octets, Py_ssize_t size)
{
    PyObject *text = PyUnicode_DecodeUTF8((const char *)octets, size, NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        PyErr_Clear();
    return text;
}

static PyObject *read_message(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "read_message(buffer, start, max_size)");
        return NULL;
    }
    char *buffer;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(args[0], &buffer, &size) < 0)
        return NULL;
    const Py_ssize_t start = PyLong_AsSsize_t(args[1]);
    if (start == -1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t max_size = PY_SSIZE_T_MAX;
    if (args[2] != Py_None) {
        max_size = PyLong_AsSsize_t(args[2]);
        if (max_size == -1 && PyErr_Occurred())
            return NULL;
    }
    const uint8_t *frame = (uint8_t *)buffer + start;
    const Py_ssize_t available = size - start;
    /* FIN and TEXT or BINARY, nothing reserved; masked. */
    if (start < 0 || available < 6 || (frame[0] != 0x81 && frame[0] != 0x82) || !(frame[1] & 0x80))
        Py_RETURN_NONE;
    Py_ssize_t length = frame[1] & 0x7f, header = 6;
    if (length == 126) {
        if (available < 8)
            Py_RETURN_NONE;
        length = frame[2] << 8 | frame[3];
        header = 8;
    } else if (length == 127) {
        if (available < 14 || frame[2] & 0x80)
            Py_RETURN_NONE;
        length = 0;
        for (int i = 2; i < 10; i++)
            length = length << 8 | frame[i];
        header = 14;
    }
    if (length > max_size || length > available - header)
        Py_RETURN_NONE;
    const uint8_t *key = frame + header - 4, *octets = frame + header;
    PyObject *payload;
    if (frame[0] == 0x82) {
        payload = PyBytes_FromStringAndSize(NULL, length);
        if (payload != NULL)
            xor_mask((uint8_t *)PyBytes_AS_STRING(payload), octets, length, key);
    } else {
        uint8_t small[SMALL], *text = length <= SMALL ? small : PyMem_Malloc(length);
        if (text == NULL)
            return PyErr_NoMemory();
        xor_mask(text, octets, length, key);
        payload = decode(text, length);
        if (text != small)
            PyMem_Free(text);
    }
    if (payload == NULL) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(iNn)", frame[0] & 0x0f, payload, start + header + length);
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
    /* Into the stack first, which needs no memory while nothing comes. */
    char small[SMALL];
    Py_ssize_t got = receive(fd, small, size < SMALL ? size : SMALL, 0);
    if (got < SMALL) {
        if (got >= 0)
            return PyBytes_FromStringAndSize(small, got);
        return got == -1 ? PyErr_SetFromErrno(PyExc_OSError) : NULL;
    }
    if (size == SMALL)
        return PyBytes_FromStringAndSize(small, got);
    PyObject *result = PyBytes_FromStringAndSize(NULL, size);
    if (result == NULL)
        return NULL;
    memcpy(PyBytes_AS_STRING(result), small, SMALL);
    got = receive(fd, PyBytes_AS_STRING(result) + SMALL, size - SMALL, MSG_DONTWAIT);
    if (got == -2) {
        Py_DECREF(result);
        return NULL;
    }
    /* An error or EOF will come again with the next read. */
    _PyBytes_Resize(&result, SMALL + (got > 0 ? got : 0));
    return result;
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
    int error;
    if (data.len <= SMALL) {  /* It never waits, so giving up the GIL would cost more than it gives. */
        do
            sent = send(fd, data.buf, data.len, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        error = errno;
    } else {
        PyThreadState *save = PyEval_SaveThread();
        do
            sent = send(fd, data.buf, data.len, MSG_DONTWAIT | MSG_NOSIGNAL);
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

static PyMethodDef methods[] = {
    {"mask", (PyCFunction)(void (*)(void))mask, METH_FASTCALL, "mask(payload, key): XOR bytes with a 4-byte key."},
    {"read_message", (PyCFunction)(void (*)(void))read_message, METH_FASTCALL,
     "read_message(buffer, start, max_size): the message that begins there as (opcode, payload, end).\n\n"
     "None unless it is a whole, valid, masked, unfragmented and uncompressed TEXT or BINARY message."},
    {"recv", (PyCFunction)(void (*)(void))recv_bytes, METH_FASTCALL, "recv(fd, size): wait for bytes; b'' at EOF."},
    {"send", (PyCFunction)(void (*)(void))send_bytes, METH_FASTCALL,
     "send(fd, data): write what can be written without waiting; return how many bytes that was."},
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
