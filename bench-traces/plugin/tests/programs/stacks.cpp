// Logs its own enters and exits, by way of -finstrument-functions: what a call stack must look like. Functions that leave
// by a tail call log by hand, for the compiler's hook at the exit would itself be the tail call. Usage: stacks LOG.
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ucontext.h>

#define QUIET __attribute__((no_instrument_function, noinline))
#define SEEN extern "C" __attribute__((noinline))

static struct { char what; const void *where; } events[1 << 16];
static unsigned count;
static volatile int sink;

QUIET static void note(char what, const void *where) {
    if (count < sizeof events / sizeof *events) events[count++] = {what, where};
}

extern "C" QUIET void __cyg_profile_func_enter(void *function, void *) { note('E', function); }
extern "C" QUIET void __cyg_profile_func_exit(void *function, void *) { note('X', function); }

SEEN int leaf(int n) { return n * 3 + sink; }

SEEN int recursive(int n) {
    if (n <= 0) return leaf(n);
    return recursive(n - 1) + leaf(n) + (n % 3 ? 0 : recursive(n - 2));
}

extern "C" QUIET int tail_first(int n);
extern "C" QUIET int tail_second(int n) {
    note('E', (const void *)tail_second);
    sink = n;
    note('X', (const void *)tail_second);
    if (n <= 0) return leaf(n);
    return tail_first(n - 1);
}
extern "C" QUIET int tail_first(int n) {
    note('E', (const void *)tail_first);
    sink = n + 1;
    note('X', (const void *)tail_first);
    return tail_second(n - 1);
}
SEEN int tails() { return tail_first(7) + tail_second(4) + leaf(1); }

SEEN int thrower(int n) {
    leaf(n);
    if (n == 0) throw 7;
    return thrower(n - 1) + leaf(n);
}
SEEN int through(int n) { return thrower(n) + leaf(n); }
SEEN int catcher(int n) {
    int caught = 0;
    try {
        through(n);
    } catch (int value) {
        caught = value + leaf(value);
    }
    return caught + leaf(n);
}
SEEN int catches_inside(int n) {
    // Caught half way up a recursion, and thrown on from there.
    if (n == 3) {
        try {
            return catches_inside(n - 1);
        } catch (int value) {
            leaf(value);
            throw;
        }
    }
    if (n == 0) throw 5;
    return catches_inside(n - 1) + leaf(n);
}
SEEN int exceptions() {
    int sum = catcher(0) + catcher(4);
    try {
        catches_inside(6);
    } catch (int value) {
        sum += leaf(value);
    }
    return sum;
}

static jmp_buf back;
SEEN int deep(int n) {
    if (n == 0) longjmp(back, 1);
    return deep(n - 1) + leaf(n);
}
SEEN int jumper(int n) {
    if (setjmp(back) == 0) return deep(n);
    // Whatever was open above this function is gone, without an exit of its own.
    note('J', (const void *)jumper);
    return leaf(n);
}
SEEN int jumps() { return jumper(0) + jumper(5) + leaf(2); }

static ucontext_t home, contexts[2];
static char stacks[2][64 << 10];
static int current;
// Not of those compared: all contexts wait in it at the same address, so that only its return tells which of them runs.
QUIET static void yield_now(int to) {
    int from = current;
    current = to;
    // From here on the other context runs.
    note(char('0' + to), nullptr);
    swapcontext(from == 2 ? &home : &contexts[from], to == 2 ? &home : &contexts[to]);
}
// Two fibers of their own code: of fibers of the same, nothing but the stack pointer tells which runs.
#define FIBER(ID, WORKER, FIBER) \
    SEEN int WORKER(int depth) { \
        if (depth > 0) return WORKER(depth - 1) + leaf(depth); \
        yield_now(2); \
        leaf(ID); \
        yield_now(1 - ID); \
        return leaf(ID); \
    } \
    SEEN void FIBER() { \
        WORKER(2 + ID); \
        /* Goes to no other context: never ends. */ \
        for (;;) yield_now(2); \
    }
FIBER(0, ping, ping_fiber)
FIBER(1, pong, pong_fiber)
SEEN void fibers() {
    for (int id = 0; id < 2; id++) {
        getcontext(&contexts[id]);
        contexts[id].uc_stack = {stacks[id], 0, sizeof stacks[id]};
        contexts[id].uc_link = nullptr;
        makecontext(&contexts[id], id == 0 ? ping_fiber : pong_fiber, 0);
    }
    current = 2;
    for (int round = 0; round < 6; round++) {
        yield_now(round & 1);
        leaf(round);
    }
}

SEEN void handler(int) { recursive(2); }
static jmp_buf out_of_handler;
SEEN void leaving_handler(int) { longjmp(out_of_handler, 1); }
SEEN void interrupted(int n) { leaf(n); raise(SIGUSR1); leaf(n); }
SEEN void left() {
    if (sigsetjmp(out_of_handler, 1) == 0) raise(SIGUSR2);
    else note('J', (const void *)left);
    leaf(9);
}
SEEN void signals() {
    signal(SIGUSR1, handler);
    signal(SIGUSR2, leaving_handler);
    interrupted(1);
    interrupted(2);
    left();
    leaf(3);
}

int main(int argc, char **argv) {
    recursive(8);
    tails();
    exceptions();
    jumps();
    signals();
    fibers();
    leaf(4);
    static const struct { const void *where; const char *name; } names[] = {
#define NAME(f) {(const void *)f, #f}
        NAME(leaf), NAME(recursive), NAME(tail_first), NAME(tail_second), NAME(tails), NAME(thrower), NAME(through),
        NAME(catcher), NAME(catches_inside), NAME(exceptions), NAME(deep), NAME(jumper), NAME(jumps),
        NAME(ping), NAME(pong), NAME(ping_fiber), NAME(pong_fiber), NAME(fibers), NAME(handler), NAME(leaving_handler), NAME(interrupted), NAME(left),
        NAME(signals),
    };
    FILE *log = argc > 1 ? fopen(argv[1], "w") : nullptr;
    if (!log) return 1;
    for (unsigned i = 0; i < count; i++) {
        const char *name = events[i].where == nullptr ? "-" : "main";
        for (auto &known : names)
            if (known.where == events[i].where) name = known.name;
        fprintf(log, "%c %s\n", events[i].what, name);
    }
    return fclose(log);
}
