/* Preloaded, this makes the C model of the BM1684X fast on a machine with few cores.

   Each of its seven threads waits by locking and unlocking one mutex without end, so the threads with nothing to do take
   the cores from the one that computes. Here a thread offers its core to others at every 64th unlock: a token of
   sailq-tiny takes 0.2 s on two cores instead of 2 s. What is computed is the same. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

static int (*unlock)(pthread_mutex_t *);
static __thread unsigned unlocks;

__attribute__((constructor)) static void find(void) { unlock = dlsym(RTLD_NEXT, "pthread_mutex_unlock"); }

int pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    if (!unlock) find(); /* another library's constructor may come first */
    int error = unlock(mutex);
    if (++unlocks % 64 == 0) sched_yield();
    return error;
}
