// Four threads that wait for each other, call the kernel often, run for a moment and for long.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t sink;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static int turn;

static __attribute__((noinline)) uint64_t work(uint64_t n) {
    uint64_t x = n;
    for (uint64_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        if (x >> 63) x ^= i;
    }
    return x;
}

// Only one thread calls each of these: whose branches are whose can be seen.
static __attribute__((noinline)) uint64_t first(uint64_t n) { return work(n) + 1; }
static __attribute__((noinline)) uint64_t second(uint64_t n) { return work(n) * 3; }
static __attribute__((noinline)) uint64_t third(uint64_t n) { return work(n) ^ 5; }
static __attribute__((noinline)) uint64_t fourth(uint64_t n) { return work(n) - 7; }
static uint64_t (*const own[4])(uint64_t) = {first, second, third, fourth};

static void *worker(void *argument) {
    long id = (long)argument;
    for (int i = 0; i < 150; i++) {
        sink += own[id]((uint64_t)(i * 37 % 211));
        if (i % 3 == 0) syscall(SYS_getppid);
        if (i % 7 == id) sched_yield();
        if (i % 50 == id) {
            struct timespec moment = {0, 20000};
            nanosleep(&moment, 0);
        }
        if (i % 40 == 0) sink += own[id](60000);
        if (i % 5 == 0) {
            // One after another: a switch for hardly any work.
            pthread_mutex_lock(&lock);
            while (turn % 4 != id) pthread_cond_wait(&turn_changed, &lock);
            turn++;
            pthread_cond_broadcast(&turn_changed);
            pthread_mutex_unlock(&lock);
        }
    }
    return 0;
}

int main(void) {
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) pthread_create(&threads[i], 0, worker, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
    printf("%d\n", turn);
    return 0;
}
