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

/* Sleep as a thread does that waits for the chip; returns the seconds that it slept. Called without the GIL. */
double launch(double seconds)
{
    double began = now(), end = began + seconds;
    struct timespec until = {(time_t)end, (long)((end - (time_t)end) * 1e9)};
    prctl(PR_SET_TIMERSLACK, 1);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
    return now() - began;
}
