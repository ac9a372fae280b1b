/* The gate before the GIL.

   With the GIL, a thread that comes back from recv() has to get the GIL, and Python lets it wait for that with a
   timeout of some milliseconds, again and again: with hundreds of busy threads most of the time goes into these
   wake-ups. So they wait at a gate of the process first, and only a few of them at a time ask for the GIL: one that
   found nobody there and goes straight on, and those who are called from the queue. A strict order would cost half of
   the throughput with many threads: the next one in the queue is seldom the next one that runs. Nobody waits at the
   gate while holding the GIL, so it cannot deadlock. Without the GIL there is no gate.

   A thread gives up the GIL with PyEval_SaveThread() and gets it back with restore_gated(). One file includes this. */

#ifndef WSTHREAD_GATE_H
#define WSTHREAD_GATE_H

#include <Python.h>

#ifdef Py_GIL_DISABLED

static void restore_gated(PyThreadState *save)
{
    PyEval_RestoreThread(save);
}

static void open_gate(void)
{
}

#else

#include <pthread.h>

#if PY_VERSION_HEX < 0x030D0000
#define IS_FINALIZING _Py_IsFinalizing
#else
#define IS_FINALIZING Py_IsFinalizing
#endif

/* Threads from the queue at the GIL. More are fairer, and slower with a thousand that are busy. */
enum { CALLED = 4 };

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

/* Gets the GIL back, by way of the gate. */
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

/* In the child of a fork: those at the gate may be threads that are not there. */
static void renew_gate(void)
{
    pthread_mutex_init(&gate.mutex, NULL);
    gate.passing = gate.called = 0;
    gate.first = NULL;
    gate.end = &gate.first;
}

/* To be called when the extension is loaded. */
static void open_gate(void)
{
    static int opened = 0;
    if (!opened) {
        opened = 1;
        pthread_atfork(NULL, NULL, renew_gate);
    }
}

#endif
#endif
