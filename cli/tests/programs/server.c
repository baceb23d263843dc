// A server-like program: four threads handle 120,000 requests between them, and one of these takes a path that no other
// takes. It prints which: the thread, counted from 0 in order of creation, and the request, counted from 0 on that thread.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 4, REQUESTS = 30000, SLOW_THREAD = 2, SLOW_REQUEST = 17321, ENTRIES = 4096 };

struct worker {
    unsigned id, sum;
    unsigned entry[ENTRIES];
};

#define APART __attribute__((noinline, noclone))

APART static unsigned mix(unsigned value)
{
    for (int i = 0; i < 4; i++)
        value = (value ^ value >> 15) * 2246822519u;
    return value;
}

APART static unsigned look_up(struct worker *worker, unsigned key)
{
    unsigned at = mix(key) % ENTRIES;
    for (int probes = 0; probes < 5 && worker->entry[at] % 3 == 0; probes++)
        at = (at + 1) % ENTRIES;
    return worker->entry[at];
}

// The rare path.
APART static void compact(struct worker *worker)
{
    for (unsigned i = 0; i + 1 < ENTRIES; i++)
        if (worker->entry[i] > worker->entry[i + 1]) {
            unsigned larger = worker->entry[i];
            worker->entry[i] = worker->entry[i + 1];
            worker->entry[i + 1] = larger;
        }
}

APART static unsigned answer(unsigned value)
{
    return value < 10 ? value + '0' : answer(value / 10) * 31 + value % 10;
}

APART static void handle_request(struct worker *worker, unsigned number)
{
    unsigned found = look_up(worker, number);
    if (worker->id == SLOW_THREAD && number == SLOW_REQUEST)
        compact(worker);
    worker->sum += answer(found % 100000) + worker->id;
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    for (unsigned i = 0; i < ENTRIES; i++)
        worker->entry[i] = i * 2654435761u;
    for (unsigned number = 0; number < REQUESTS; number++)
        handle_request(worker, number);
    return NULL;
}

int main(void)
{
    static struct worker workers[THREADS];
    pthread_t thread[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].id = i;
        if (pthread_create(&thread[i], NULL, work, &workers[i]) != 0)
            abort();
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    printf("%d %d\n", SLOW_THREAD, SLOW_REQUEST);
    return 0;
}
