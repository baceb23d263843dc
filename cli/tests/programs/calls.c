// Ways of calling that a list of executed instructions must follow: recursion, tail calls, loops, signal handlers in a
// system call and in the middle of a function. Compiled twice into one program; the second time with OTHER, for a second function of one name.

#define APART __attribute__((noinline, noclone))

extern unsigned other(unsigned value);

APART static unsigned step(unsigned value)
{
#ifdef OTHER
    return value * 7 + 1;
#else
    return (value ^ value >> 3) * 2654435761u;
#endif
}

#ifdef OTHER

APART unsigned other(unsigned value)
{
    return step(value) ^ 1;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>

enum { THREADS = 2, REQUESTS = 60 };

enum { PAGE = 4096 };

static volatile unsigned signals;
static _Thread_local unsigned *page;

APART static void on_signal(int number)
{
    for (int i = 0; i < 3; i++)
        signals += step(number + i) | 1;
    if (number == SIGSEGV)
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}

// Calls itself twice, and by way of odd().
APART static unsigned fib(unsigned n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

APART static unsigned odd(unsigned n);

APART static unsigned even(unsigned n)
{
    return n == 0 ? 1 : odd(n - 1) + 1;
}

APART static unsigned odd(unsigned n)
{
    return n == 0 ? 0 : even(n - 1) + 1;
}

// Is reached by a jump.
APART static unsigned last(unsigned value)
{
    unsigned sum = value;
    for (unsigned i = 0; i < value % 5 + 2; i++)
        for (unsigned k = 0; k < i; k++)
            sum = sum * 31 + k;
    return sum;
}

__attribute__((noinline, noclone, optimize("O2"))) static unsigned chain(unsigned value)
{
    return last(step(value));
}

// Never called, but there.
APART unsigned handled(unsigned value)
{
    return value + 1;
}

APART static unsigned handle(unsigned number)
{
    unsigned sum = fib(3 + number % 6) + even(number % 9) + chain(number) + other(number);
    for (unsigned i = 0; i < number % 50; i++)
        sum += step(i);
    if (number % 16 == 3)
        raise(SIGUSR1);
    if (number % 8 == 5)
        sched_yield();
    if (number % 7 == 2) {
        mprotect(page, PAGE, PROT_NONE);
        sum += *(volatile unsigned *)page;
    }
    return sum;
}

static void *work(void *argument)
{
    unsigned *sum = argument;
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (unsigned number = 0; number < REQUESTS; number++)
        *sum += handle(number);
    return NULL;
}

int main(int count, char **arguments)
{
    unsigned sums[THREADS] = { 0 };
    pthread_t thread[THREADS];
    signal(SIGUSR1, on_signal);
    signal(SIGSEGV, on_signal);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_create(&thread[i], NULL, work, &sums[i]);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    if (count > 100)
        sums[0] += handled(sums[1]);
    printf("%u\n", sums[0] + sums[1]);
    (void)arguments;
    return 0;
}

#endif
