// Does little but return, and is interrupted by signals all the while: many come right behind a RET.

#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

void on_signal(int number) {
    (void)number;
    signals++;
}

__attribute__((noinline)) static void nothing(void) {
    __asm__ volatile("");
}

int main(void) {
    signal(SIGALRM, on_signal);
    ualarm(1000, 1000);
    while (signals < 60) {
        nothing();
        nothing();
        nothing();
        nothing();
    }
    ualarm(0, 0);
    return 0;
}
