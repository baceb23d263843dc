// Control flow that breaks decoders: threads, signals, faults, longjmp, stacks that are switched, recursion deeper than
// the return stack, coroutines on stacks of their own, tables of jumps, calls to the next instruction, returns that jump,
// LOOP and JRCXZ, string instructions that repeat.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

static volatile uint64_t sink;
static volatile sig_atomic_t signals;

static int deep(int n) { return n == 0 ? 1 : deep(n - 1) + (n & 1); }

static int table(int n) {
    switch (n % 9) {
    case 0: return n * 3;
    case 1: return n ^ 0x55;
    case 2: return n >> 1;
    case 3: return n + 17;
    case 4: return -n;
    case 5: return n * n;
    case 6: return n | 8;
    case 7: return n & 0x70;
    default: return 1;
    }
}

static uint64_t own_address(void) {
    uint64_t here;
    __asm__ volatile("call 1f\n1: pop %0" : "=r"(here));
    return here;
}

static void odd_branches(void) {
    uint64_t to, count = 7;
    __asm__ volatile(
        "sub $128, %%rsp\n"  // the red zone
        "lea 1f(%%rip), %0\n"
        "push %0\n"
        "ret\n"
        "1: add $128, %%rsp\n"
        "2: loop 2b\n"
        "jrcxz 3f\n"
        "ud2\n"
        "3:"
        : "=&r"(to), "+c"(count) : : "memory", "cc");
    sink += to + count;
}

static void strings(void) {
    static char from[5000], to[5000];
    memset(from, 'x', sizeof from);
    void *d = to, *s = from;
    uint64_t n = sizeof to;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    n = 0;
    d = to;
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(0) : "memory");
    sink += (unsigned char)to[4999];
}

static void on_signal(int number) {
    (void)number;
    signals++;
    sink += (uint64_t)deep(5);
}

static sigjmp_buf out_of_fault;
static void on_fault(int number) {
    (void)number;
    siglongjmp(out_of_fault, 1);
}

static void faults(void) {
    char *page = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 5; i++)
        if (sigsetjmp(out_of_fault, 1) == 0) {
            sink += (uint64_t)table(i);
            sink += (uint64_t)*(volatile char *)(page + i);
            abort();
        }
    munmap(page, 4096);
}

static jmp_buf from_far;
static void far_down(int n) {
    if (n == 0) longjmp(from_far, 1);
    far_down(n - 1);
    sink++;
}

static ucontext_t home, fiber;
static void fiber_main(void) {
    for (int i = 0; i < 50; i++) {
        sink += (uint64_t)deep(i);
        swapcontext(&fiber, &home);
    }
}

static void fibers(void) {
    static char stack[64 << 10];
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = stack;
    fiber.uc_stack.ss_size = sizeof stack;
    fiber.uc_link = &home;
    makecontext(&fiber, fiber_main, 0);
    for (int i = 0; i < 50; i++) {
        swapcontext(&home, &fiber);
        sink += (uint64_t)table(i);
    }
}

// Switches stacks without a system call: the RET goes where no CALL of this stack came from.
void switch_stacks(void **save, void *load);
__asm__(
    ".text\n.globl switch_stacks\n.type switch_stacks, @function\n"
    "switch_stacks:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\n"
    "mov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
    "ret\n"
    ".size switch_stacks, . - switch_stacks\n");

static void *outside, *inside;
static void coroutine(void) {
    for (int i = 0;; i++) {
        sink += (uint64_t)deep(60 + (i & 15));
        switch_stacks(&inside, outside);
    }
}

static void coroutines(void) {
    static void *stack[4096] __attribute__((aligned(16)));
    // Six registers, and where the first switch returns to; at a function's entry the stack is 8 off 16.
    void **top = stack + 4094;
    top[-1] = (void *)coroutine;
    inside = top - 7;
    for (int i = 0; i < 40; i++) {
        switch_stacks(&outside, inside);
        sink += (uint64_t)table(i);
    }
}

static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *worker(void *argument) {
    long id = (long)argument;
    uint64_t own = 0;
    for (int i = 0; i < 300; i++) {
        own += (uint64_t)table((int)id + i) + (uint64_t)deep(70 + (i & 63));
        if (i % 16 == 0) {
            pthread_mutex_lock(&lock);
            sink += own;
            pthread_mutex_unlock(&lock);
        }
        if (i % 64 == 0) raise(SIGUSR1);
    }
    return 0;
}

int main(void) {
    signal(SIGUSR1, on_signal);
    signal(SIGALRM, on_signal);
    signal(SIGSEGV, on_fault);
    ualarm(2000, 2000);
    int numbers[500];
    for (int i = 0; i < 500; i++) numbers[i] = (int)((unsigned)i * 2654435761u >> 8);
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) pthread_create(&threads[i], 0, worker, (void *)i);
    for (int round = 0; round < 40; round++) {
        sink += (uint64_t)deep(200) + own_address();
        strings();
        qsort(numbers, 500, sizeof *numbers, compare);
        if (setjmp(from_far) == 0) far_down(30);
        fibers();
        coroutines();
        odd_branches();
        for (int i = 0; i < 2000; i++) sink += (uint64_t)table(i);
    }
    faults();
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
    ualarm(0, 0);
    printf("%d\n", signals >= 20);
    return 0;
}
