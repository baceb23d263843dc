// Inlined functions of all kinds: nested, in loops, next to each other, that call out, that end with a call, in a function
// that calls itself, and in one that is called at the end of another.

#include <stdio.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))
#define CALLED __attribute__((noinline, noclone))

static volatile unsigned sum;

CALLED unsigned leaf(unsigned value) {
    sum += value;
    return sum ^ value;
}

INLINE unsigned mix(unsigned value) {
    value ^= value << 13;
    value ^= value >> 17;
    return value ^ value << 5;
}

INLINE unsigned twice(unsigned value) {
    sum += 1;
    return mix(mix(value) + sum);
}

INLINE unsigned calls_out(unsigned value) {
    sum ^= value;
    unsigned known = leaf(twice(value));
    sum += known;
    return known * 3;
}

INLINE void ends_with_a_call(unsigned value) {
    if (value & 1) {
        leaf(value);
    }
}

INLINE unsigned loops(unsigned value) {
    for (unsigned round = value & 3; round > 0; round--) {
        value += mix(value) + leaf(round);
    }
    return value;
}

CALLED unsigned at_the_end(unsigned value) {
    return twice(value) + sum;
}

CALLED unsigned jumps_on(unsigned value) {
    sum += calls_out(value);
    return at_the_end(value + 1);
}

CALLED unsigned recursive(unsigned depth) {
    unsigned value = calls_out(depth);
    if (depth > 0) {
        value += recursive(depth - 1);
    }
    return twice(value);
}

CALLED unsigned work(unsigned value) {
    unsigned all = 0;
    for (unsigned round = 0; round < 5; round++) {
        all += loops(value + round);
        ends_with_a_call(all);
        all ^= mix(all);
        all += jumps_on(all & 15);
    }
    if (__builtin_expect(all == 0, 0)) {
        all = calls_out(all) + loops(all);
    }
    return all + recursive(3);
}

int main(void) {
    unsigned all = 0;
    for (unsigned round = 0; round < 200; round++) {
        all += work(round);
    }
    printf("%u\n", all);
    return EXIT_SUCCESS;
}
