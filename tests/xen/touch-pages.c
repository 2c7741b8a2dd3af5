/* touch-pages MIB: writes one word of each of these pages, over and over, in turn, as fast as it can
 * but for a hundredth of a second after each time, and exits with 1 when a page does not hold what
 * was written to it the time before. It says how often it has done so after 1, 2, 4, 8, ... times. A shell cannot: a process for each mebibyte costs an emulated
 * processor more than the writing. */

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / sizeof(unsigned long), PAGES_IN_A_MEBIBYTE = 256 };

int main(int argc, char **argv)
{
    size_t pages = argc == 2 ? strtoul(argv[1], NULL, 10) * PAGES_IN_A_MEBIBYTE : 0;
    unsigned long *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("touch-pages");
        return 2;
    }
    for (unsigned long times = 0;; times++) {
        for (size_t page = 0; page < pages; page++) {
            unsigned long *word = memory + page * WORDS + page % WORDS;
            unsigned long wanted = times ? times + page : 0;
            if (*word != wanted) {
                printf("page %zu holds %lu instead of %lu\n", page, *word, wanted);
                return 1;
            }
            *word = times + 1 + page;
        }
        if (!(times & (times + 1))) {
            printf("touched %lu times\n", times + 1);
            fflush(stdout);
        }
        usleep(10000);
    }
}
