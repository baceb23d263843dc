/* Small, and all that a profile has to tell apart: inlined functions, loops, a switch, recursion, calls through pointers,
   cold code. Deterministic. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct word {
    struct word *next;
    unsigned count;
    char text[12];
};

static struct word *table[256];
static unsigned long state = 88172645463325252ul;

static inline unsigned mix(unsigned hash, unsigned char byte) {
    return (hash ^ byte) * 16777619u;
}

static inline unsigned hash_of(const char *text) {
    unsigned hash = 2166136261u;
    for (; *text; text++) hash = mix(hash, (unsigned char)*text);
    return hash;
}

static unsigned next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 11);
}

static void make(char *text) {
    unsigned length = 1 + next_random() % 3;
    for (unsigned i = 0; i < length; i++) {
        unsigned kind = next_random() % 8;
        switch (kind) {
        case 0: text[i] = 'x'; break;
        case 1: text[i] = (char)('0' + next_random() % 10); break;
        case 2: case 3: text[i] = (char)('A' + next_random() % 26); break;
        case 4: text[i] = '-'; break;
        default: text[i] = (char)('a' + next_random() % 26);
        }
    }
    text[length] = 0;
}

static struct word *find(const char *text) {
    struct word **place = &table[hash_of(text) & 255];
    for (; *place; place = &(*place)->next)
        if (strcmp((*place)->text, text) == 0) return *place;
    *place = calloc(1, sizeof **place);
    if (!*place) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    strcpy((*place)->text, text);
    return *place;
}

static int by_count(const void *left, const void *right) {
    const struct word *a = *(struct word *const *)left, *b = *(struct word *const *)right;
    if (a->count != b->count) return a->count < b->count ? 1 : -1;
    return strcmp(a->text, b->text);
}

static unsigned seldom;

__attribute__((noinline)) static void count_seldom(unsigned value) {
    seldom += value;
}

/* What seldom happens stands first: without a profile it is in the way of what happens always. */
__attribute__((noinline)) static unsigned checked(unsigned value) {
    if (value % 64 == 3) count_seldom(value);
    value ^= value >> 7;
    if (value % 64 == 5) count_seldom(value + 1);
    value *= 2246822519u;
    if (value % 64 == 7) count_seldom(value + 2);
    return value;
}

static unsigned depth(unsigned n) {
    return n < 2 ? n : depth(n - 1) + depth(n - 2);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 20000;
    unsigned sum = 1;
    for (int i = 0; i < rounds; i++) {
        char text[12];
        make(text);
        find(text)->count++;
        for (int j = 0; j < 20; j++) sum = checked(sum + j);
    }
    static struct word *all[1 << 16];
    size_t words = 0;
    for (int i = 0; i < 256; i++)
        for (struct word *word = table[i]; word && words < 1 << 16; word = word->next) all[words++] = word;
    qsort(all, words, sizeof *all, by_count);
    printf("%zu words, first %s: %u; %u %u %u\n", words, all[0]->text, all[0]->count, depth(15), sum, seldom);
    return 0;
}
