// A library whose code depends on how it is compiled, and whose size does not.
static long step(long x, long i) {
#if VARIANT == 1
    return i % 3 ? x * 5 + i : x - i;
#else
    return i & 4 ? x ^ (i << 3) : i & 1 ? x + 7 * i : x - 1;
#endif
}

__attribute__((noinline)) static long inner(long n) {
    long x = n;
    for (long i = 0; i < n; i++) x = step(x, i);
    return x;
}

long work(long n) {
    long x = 0;
    for (long i = 0; i < n; i++) x += inner(i + VARIANT);
    return x;
}
