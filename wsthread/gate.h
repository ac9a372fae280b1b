/* The gate before the GIL.

   With the GIL, a thread that comes back from recv() has to get the GIL, and Python lets it wait for that with a
   timeout of some milliseconds, again and again: with hundreds of busy threads most of the time goes into these
   wake-ups. So they wait at a gate of the process first, and only a few of them at a time ask for the GIL: one that
   found nobody there and goes straight on, and those who are called from the queue. A strict order would cost half of
   the throughput with many threads: the next one in the queue is seldom the next one that runs. Nobody waits at the
   gate while holding the GIL, so it cannot deadlock.

   Who is through the gate while another thread still has the GIL does not sleep at once: on another CPU that thread
   needs some microseconds for a message, and to be woken up takes as long. So it watches for a moment whether the other
   one gives up the GIL. It does not if both have the same CPU, where that one has to run first, nor if the process gets
   no more than one CPU, where others have to run. What a handler does is not known: it may give up the GIL elsewhere,
   for a database or for zlib. So a holder that was watched in vain is forgotten, and the moment becomes shorter; when
   watching helps again, it becomes longer.

   Without the GIL there is no gate. A thread gives up the GIL with save_gated() and gets it back with restore_gated().
   One file includes this. */

#ifndef WSTHREAD_GATE_H
#define WSTHREAD_GATE_H

#include <Python.h>

#ifdef Py_GIL_DISABLED

static PyThreadState *save_gated(void)
{
    return PyEval_SaveThread();
}

static void restore_gated(PyThreadState *save)
{
    PyEval_RestoreThread(save);
}

static void open_gate(void)
{
}

#else

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#if PY_VERSION_HEX < 0x030D0000
#define IS_FINALIZING _Py_IsFinalizing
#else
#define IS_FINALIZING Py_IsFinalizing
#endif

/* Threads from the queue at the GIL. More are fairer; but on a second CPU, slower. */
enum { CALLED = 4, CALLED_TO_WATCH = 2 };

/* Microseconds to watch the holder of the GIL, at most and at least, and between two looks at what the process uses. */
enum { LONG_WATCH = 100, SHORT_WATCH = 2, LOOK_EVERY = 20000 };

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

/* The thread that has got the GIL at the gate and has not given it up here; NULL when there is none. Only compared. */
static _Atomic(PyThreadState *) holder;
static atomic_int holder_cpu;
static atomic_uint watch = LONG_WATCH;
/* Whether this process uses more than one CPU, as of some milliseconds ago. */
static atomic_int has_second_cpu;

static PyThreadState *save_gated(void)
{
    PyThreadState *const save = PyEval_SaveThread();
    PyThreadState *own = save;  /* Meanwhile there may be another one. */
    atomic_compare_exchange_strong(&holder, &own, NULL);
    return save;
}

/* The CPU that this thread runs on; -1 where the system does not tell. */
static int current_cpu(void)
{
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

/* They begin anew after some 70 minutes, so only differences count. */
static unsigned microseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (unsigned)now.tv_sec * 1000000U + (unsigned)now.tv_nsec / 1000U;
}

/* Finds out whether the process has a second CPU, now and then. */
static void look_at_cpus(unsigned now)
{
    static atomic_uint looked_at, used_then;
    unsigned last = atomic_load(&looked_at);
    if (now - last > LOOK_EVERY && atomic_compare_exchange_strong(&looked_at, &last, now)) {
        const unsigned used = microseconds(CLOCK_PROCESS_CPUTIME_ID);
        atomic_store(&has_second_cpu, used - atomic_exchange(&used_then, used) > now - last);
    }
}

/* Lets some nanoseconds pass, and the other thread of this core have them. */
static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Waits a moment for the holder to give up the GIL, if that may be worth it. */
static void watch_holder(void)
{
    PyThreadState *watched = atomic_load(&holder);
    if (watched == NULL)
        return;
    const unsigned begin = microseconds(CLOCK_MONOTONIC);
    look_at_cpus(begin);
    if (!atomic_load(&has_second_cpu))
        return;
    const unsigned time = atomic_load(&watch);
    do {
        const int cpu = current_cpu();
        if (cpu < 0 || cpu == atomic_load(&holder_cpu))
            return;
        for (int i = 0; i < 16; i++) {
            if (atomic_load(&holder) == NULL) {
                atomic_store(&watch, time > LONG_WATCH / 2 ? LONG_WATCH : time * 2);
                return;
            }
            relax();
        }
    } while (microseconds(CLOCK_MONOTONIC) - begin < time);
    atomic_compare_exchange_strong(&holder, &watched, NULL);
    atomic_store(&watch, time * 3 / 4 < SHORT_WATCH ? SHORT_WATCH : time * 3 / 4);
}

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

    watch_holder();
    PyEval_RestoreThread(save);
    atomic_store(&holder_cpu, current_cpu());
    atomic_store(&holder, save);

    pthread_mutex_lock(&gate.mutex);
    if (waits)
        gate.called--;
    else
        gate.passing = 0;
    const int most = atomic_load(&has_second_cpu) ? CALLED_TO_WATCH : CALLED;
    for (; gate.first != NULL && gate.called < most; gate.called++) {
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
    atomic_store(&holder, NULL);
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
