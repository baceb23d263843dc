// Runs the code of one library after another at one address, again and again. (The emulator's own choice of addresses
// never comes back to one, so dlopen alone would not do.)
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static char *const place = (char *)0x700000000000;
enum { LENGTH = 0x1000, TEXT = 0x1000 };

int main(int argc, char **argv) {
    long sum = 0;
    for (int round = 0; round < 6; round++) {
        for (int i = 1; i < argc; i++) {
            struct link_map *library = dlopen(argv[i], RTLD_NOW);
            if (!library) return puts(dlerror()), 1;
            long offset = (char *)dlsym(library, "work") - (char *)library->l_addr;
            // Its text is one page at the same place of the file as of the address space.
            int file = open(argv[i], O_RDONLY);
            if (round & 1) munmap(place, LENGTH);
            char *text = mmap(place, LENGTH, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, TEXT);
            if (text != place) return puts("mmap"), 1;
            close(file);
            sum += ((long (*)(long))(place + offset - TEXT))(round + 20);
            dlclose(library);
        }
    }
    printf("%ld\n", sum);
    return 0;
}
