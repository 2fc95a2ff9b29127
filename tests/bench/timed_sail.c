/* The two ways in which a call of SAIL takes time. Build: cc -O2 -shared -fPIC. */
#define _GNU_SOURCE
#include <time.h>
#include <sys/prctl.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Take the core until then, a time of CLOCK_MONOTONIC. Called with the GIL held. */
void hold(double until)
{
    while (now() < until)
        ;
}

/* From Python's C API, which the process has loaded. */
void *PyEval_SaveThread(void);
void PyEval_RestoreThread(void *);

/* Take the core until then, and sleep for so many seconds without the GIL, as a thread does that waits for the chip.
   Returns the seconds that it slept. Called with the GIL held. */
double launch(double until, double seconds)
{
    hold(until);
    void *thread = PyEval_SaveThread();
    double began = now(), end = began + seconds;
    struct timespec wake = {(time_t)end, (long)((end - (time_t)end) * 1e9)};
    prctl(PR_SET_TIMERSLACK, 1);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, 0);
    double slept = now() - began;
    PyEval_RestoreThread(thread);
    return slept;
}
