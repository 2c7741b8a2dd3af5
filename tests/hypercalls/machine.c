/* The machine's files, and who has them open. */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef LAYOUT_CHECK
#include LAYOUT_CHECK
#endif

struct machine *machine;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned int users;
static char directory[PATH_MAX];
static struct guest *guests;
static int void_file = -1;

static void *map_file(const char *name, size_t *bytes)
{
    char path[PATH_MAX + 32];
    struct stat stat;
    void *found = MAP_FAILED;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    if (!fstat(fd, &stat)) {
        found = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        *bytes = stat.st_size;
    }
    close(fd);
    return found == MAP_FAILED ? NULL : found;
}

static int open_file(const char *kind, uint32_t domid)
{
    char path[PATH_MAX + 32];

    snprintf(path, sizeof(path), "%s/%s-%u", directory, kind, domid);
    return open(path, O_RDWR | O_CLOEXEC);
}

static bool open_files(const char *named)
{
    size_t bytes;

    if (!named || !realpath(named, directory)) {
        fprintf(stderr, "hypercalls: HYPERCALLS_MACHINE does not name a directory\n");
        errno = ENOENT;
        return false;
    }
    machine = map_file("machine", &bytes);
    void_file = memfd_create("hypercalls-void", MFD_CLOEXEC);
    return machine && void_file >= 0;
}

static void close_files(void)
{
    forget_areas();
    while (guests) {
        struct guest *guest = guests;

        guests = guest->next;
        if (guest->memory)
            munmap(guest->memory, guest->domain->capacity * PAGE_BYTES);
        close(guest->memory_fd);
        close(guest->grants_fd);
        munmap(guest->domain, guest->state_bytes);
        free(guest);
    }
    munmap(machine, sizeof(*machine));
    machine = NULL;
    close(void_file);
}

bool machine_get(void)
{
    bool there = true;

    pthread_mutex_lock(&lock);
    if (!users)
        there = open_files(getenv("HYPERCALLS_MACHINE"));
    if (there) {
        users++;
        __atomic_add_fetch(&machine->handles_open, 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
    return there;
}

/* One thread at a time looks. */
static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;

bool machine_look(const char *named)
{
    pthread_mutex_lock(&looking);
    if (open_files(named))
        return true;
    pthread_mutex_unlock(&looking);
    return false;
}

void machine_look_away(void)
{
    close_files();
    pthread_mutex_unlock(&looking);
}

int open_fifo(const char *kind, uint32_t domid)
{
    char path[PATH_MAX + 32];

    snprintf(path, sizeof(path), "%s/%s-%u", directory, kind, domid);
    return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

/* The number of mappings of guests' memory that this process has, by the kernel's account: they may
 * be unmapped with a plain munmap. */
static unsigned int mappings(void)
{
    char line[PATH_MAX + 128];
    unsigned int found = copied_areas;
    FILE *maps = fopen("/proc/self/maps", "re");

    while (maps && fgets(line, sizeof(line), maps)) {
        char *path = strchr(line, '/');
        void *start = (void *)strtoul(line, NULL, 16);
        bool own = false;

        if (!path || strncmp(path, directory, strlen(directory)))
            continue;
        path += strlen(directory);
        for (struct guest *guest = guests; guest; guest = guest->next)
            own |= guest->memory == start;
        found += !own && (!strncmp(path, "/memory-", 8) || !strncmp(path, "/grants-", 8));
    }
    if (maps)
        fclose(maps);
    return found;
}

static void count_mappings(void)
{
    __atomic_add_fetch(&machine->mappings_left, mappings(), __ATOMIC_RELAXED);
}

void machine_put(void)
{
    pthread_mutex_lock(&lock);
    __atomic_sub_fetch(&machine->handles_open, 1, __ATOMIC_RELAXED);
    if (!--users) {
        count_mappings();
        close_files();
    }
    pthread_mutex_unlock(&lock);
}

/* A process that ends with its handles open is counted as well. */
static void __attribute__((destructor)) at_exit(void)
{
    if (users)
        count_mappings();
}

int void_fd(void)
{
    return void_file;
}

struct guest *guest_of(uint32_t domid)
{
    char name[32];
    struct guest *guest;

    pthread_mutex_lock(&lock);
    for (guest = guests; guest && guest->domid != domid; guest = guest->next)
        ;
    if (!guest && domid < DOMID_FIRST_RESERVED) {
        size_t bytes;
        snprintf(name, sizeof(name), "domain-%u", domid);
        struct domain *domain = map_file(name, &bytes);

        if (domain) {
            guest = calloc(1, sizeof(*guest));
            guest->domid = domid;
            guest->domain = domain;
            guest->kinds = (uint8_t *)domain + bytes - 4 * domain->capacity;
            guest->dirty = guest->kinds + domain->capacity;
            guest->mapped = (uint16_t *)(guest->dirty + domain->capacity);
            guest->memory_fd = open_file("memory", domid);
            guest->grants_fd = open_file("grants", domid);
            guest->state_bytes = bytes;
            guest->next = guests;
            guests = guest;
        }
    }
    pthread_mutex_unlock(&lock);
    return guest && guest->domain->gone ? NULL : guest;
}

struct guest *guest_from(uint32_t domid)
{
    struct guest *guest = NULL;

    /* Tests number their domains by hand, from 1 on. */
    for (; domid < 1024 && !guest; domid++)
        guest = guest_of(domid);
    return guest;
}

uint8_t *guest_memory(struct guest *guest)
{
    if (!guest->memory) {
        void *all = mmap(NULL, guest->domain->capacity * PAGE_BYTES, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_NORESERVE, guest->memory_fd, 0);
        guest->memory = all == MAP_FAILED ? NULL : all;
    }
    return guest->memory;
}

static struct tally *find(const char *name, uint32_t from)
{
    uint32_t n = __atomic_load_n(&machine->nr_tallies, __ATOMIC_ACQUIRE);

    for (uint32_t i = from; i < n; i++)
        if (!strcmp(machine->tallies[i].name, name))
            return &machine->tallies[i];
    return NULL;
}

static struct tally *tally_of(const char *name)
{
    struct tally *found = find(name, 0);

    if (found)
        return found;
    while (__atomic_exchange_n(&machine->lock, 1, __ATOMIC_ACQUIRE))
        ;
    found = find(name, 0);
    if (!found && machine->nr_tallies < MAX_TALLIES) {
        found = &machine->tallies[machine->nr_tallies];
        snprintf(found->name, sizeof(found->name), "%s", name);
        __atomic_add_fetch(&machine->nr_tallies, 1, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&machine->lock, 0, __ATOMIC_RELEASE);
    if (!found) {
        fprintf(stderr, "hypercalls: too many different calls\n");
        abort();
    }
    return found;
}

int tally(const char *name, uint32_t *short_by)
{
    struct tally *row = tally_of(name);
    uint64_t number = __atomic_add_fetch(&row->count, 1, __ATOMIC_RELAXED);

    if (short_by)
        *short_by = 0;
    if (number < row->fail_from || number > row->fail_to)
        return 0;
    if (short_by)
        *short_by = row->short_by;
    return row->fail_errno;
}

int refuse(const char *format, ...)
{
    char name[sizeof(((struct tally *)0)->name)];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof(name), format, arguments);
    va_end(arguments);
    fprintf(stderr, "hypercalls: %s is unknown here: ENOSYS\n", name);
    if (machine) {
        struct tally *row = tally_of(name);

        row->unknown = 1;
        __atomic_add_fetch(&row->count, 1, __ATOMIC_RELAXED);
    }
    return ENOSYS;
}

const struct operation *operation_of(const struct operation *table, size_t n, unsigned int number)
{
    for (size_t i = 0; i < n; i++)
        if (table[i].number == number)
            return &table[i];
    return NULL;
}
