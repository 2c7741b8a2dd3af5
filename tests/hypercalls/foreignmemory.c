/* libxenforeignmemory: guests' pages, mapped from the file that is their memory.
 *
 * As with privcmd, the area is contiguous, all its pages are there at once, each page that cannot be
 * mapped has an error (touching it is SIGBUS, or EFAULT in a system call), and no child inherits it.
 * A page that is paged out is asked for, again and again, until its pager has brought it; and a page
 * counts its mappings, without which there is no telling whether it can be evicted. A process that is
 * killed leaves its counts behind.
 * Unlike with privcmd, splice, vmsplice, sendfile and O_DIRECT work here. Pages in a row cost about
 * what they cost on Xen; for scattered ones see struct machine's copies. */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xen/memory.h>
#include <xenforeignmemory.h>

struct xenforeignmemory_handle {
    int unused;
};

struct xenforeignmemory_resource_handle {
    void *address;
    size_t bytes;
};

xenforeignmemory_handle *xenforeignmemory_open(struct xentoollog_logger *logger,
                                               unsigned open_flags)
{
    if (!machine_get())
        return NULL;
    int error = tally("xenforeignmemory_open", NULL);
    if (error) {
        machine_put();
        errno = error;
        return NULL;
    }
    return calloc(1, sizeof(struct xenforeignmemory_handle));
}

int xenforeignmemory_close(xenforeignmemory_handle *fmem)
{
    if (fmem) {
        machine_put();
        free(fmem);
    }
    return 0;
}

/* The error of mapping this page, as privcmd returns it. */
static int refused(struct guest *guest, xen_pfn_t pfn)
{
    if (pfn >= guest->domain->capacity)
        return -EINVAL;
    switch (guest->kinds[pfn]) {
    case RAM:
    case SPECIAL:
    case NOMINATED:
    case RETURNING:
        return 0;
    case PAGED_OUT:
        request_foreign(guest, pfn);
        return -ENOENT;
    case PAGING_IN:
        return -ENOENT;
    case UNMAPPABLE:
        return -EFAULT;
    default:
        return -EINVAL;
    }
}

/* Maps each run of consecutive pfns at once. Returns the number of pages that were refused, or -1
 * with errno. */
static long map_runs(struct guest *guest, uint8_t *area, int prot, size_t n,
                     const xen_pfn_t pfns[], int errors[])
{
    long bad = 0;

    for (size_t i = 0, run; i < n; i += run) {
        int error = refused(guest, pfns[i]);

        run = 1;
        if (errors)
            errors[i] = error;
        if (error) {
            bad++;
            errno = -error;
            continue;
        }
        for (; i + run < n && pfns[i + run] == pfns[i] + run && !refused(guest, pfns[i + run]);
             run++)
            if (errors)
                errors[i + run] = 0;
        if (mmap(area + i * PAGE_BYTES, run * PAGE_BYTES, prot,
                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, guest->memory_fd,
                 pfns[i] * PAGE_BYTES) == MAP_FAILED)
            return -1;
    }
    return bad;
}

/* Mapped areas: their pages are counted as mapped. */
struct area {
    struct area *next;
    struct guest *guest;
    void *start;
    size_t n;
    xen_pfn_t pfns[]; /* those that are not mapped: ~0 */
};
static struct area *areas;
static pthread_mutex_t areas_lock = PTHREAD_MUTEX_INITIALIZER;

static void count_area(struct guest *guest, void *start, size_t n, const xen_pfn_t pfns[],
                       const int errors[])
{
    struct area *area = malloc(sizeof(*area) + n * sizeof(*pfns));

    *area = (struct area){.guest = guest, .start = start, .n = n};
    for (size_t i = 0; i < n; i++) {
        bool there = !errors || !errors[i];

        area->pfns[i] = there ? pfns[i] : ~0UL;
        if (there)
            __atomic_add_fetch(&guest->mapped[pfns[i]], 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_lock(&areas_lock);
    area->next = areas;
    areas = area;
    pthread_mutex_unlock(&areas_lock);
}

static void discount_area(const void *start)
{
    struct area **at = &areas, *area;

    pthread_mutex_lock(&areas_lock);
    while (*at && (*at)->start != start)
        at = &(*at)->next;
    area = *at;
    if (area)
        *at = area->next;
    pthread_mutex_unlock(&areas_lock);
    for (size_t i = 0; area && i < area->n; i++)
        if (area->pfns[i] != ~0UL)
            __atomic_sub_fetch(&area->guest->mapped[area->pfns[i]], 1, __ATOMIC_RELAXED);
    free(area);
}

void forget_areas(void)
{
    while (areas)
        discount_area(areas->start);
}

/* As libxenforeignmemory: waits for the pages that are paged out, as long as there is a pager. */
static void wait_for_paged(struct guest *guest, uint8_t *area, int prot, size_t n,
                           const xen_pfn_t pfns[], int errors[])
{
    bool left, paged;

    do {
        paged = guest->domain->paging;
        left = false;
        for (size_t i = 0; i < n; i++)
            if (errors[i] == -ENOENT) {
                map_runs(guest, area + i * PAGE_BYTES, prot, 1, &pfns[i], &errors[i]);
                left |= errors[i] == -ENOENT;
            }
        if (left)
            usleep(100);
    } while (left && paged);
}

/* Areas whose pages are copies: mapped ones, and some spare ones to be reused, which saves the kernel
 * from zeroing each page. */
struct copied {
    struct copied *next;
    uint8_t *area;
    size_t n;
    bool whole; /* no page was refused: it can be reused */
};
#define SPARE_AREAS 8
static struct copied *copied, *spare;
static unsigned int nr_spare;
static pthread_mutex_t copied_lock = PTHREAD_MUTEX_INITIALIZER;
unsigned int copied_areas;

/* Whether there is more than one run for every eight pages. */
static bool scattered(size_t n, const xen_pfn_t pfns[])
{
    size_t runs = 1;

    for (size_t i = 1; i < n; i++)
        runs += pfns[i] != pfns[i - 1] + 1;
    return runs > n / 8 && n > 8;
}

static struct copied *new_area(size_t n)
{
    struct copied *one;

    pthread_mutex_lock(&copied_lock);
    struct copied **at = &spare;
    while (*at && (*at)->n != n)
        at = &(*at)->next;
    one = *at;
    if (one) {
        *at = one->next;
        nr_spare--;
    }
    pthread_mutex_unlock(&copied_lock);
    if (one || !(one = calloc(1, sizeof(*one))))
        return one;
    one->n = n;
    one->area = mmap(NULL, n * PAGE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (one->area != MAP_FAILED)
        return one;
    free(one);
    return NULL;
}

/* Like a mapping, for pages that nobody will write through it. */
static void *map_copies(struct guest *guest, size_t n, const xen_pfn_t pfns[], int errors[])
{
    const uint8_t *memory = guest_memory(guest);
    struct copied *one = memory ? new_area(n) : NULL;

    if (!one)
        return NULL;
    one->whole = true;
    for (size_t i = 0; i < n; i++) {
        uint8_t *page = one->area + i * PAGE_BYTES;

        errors[i] = refused(guest, pfns[i]);
        if (errors[i]) {
            one->whole = false;
            mmap(page, PAGE_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, void_fd(), 0);
        } else
            memcpy(page, memory + pfns[i] * PAGE_BYTES, PAGE_BYTES);
    }
    pthread_mutex_lock(&copied_lock);
    one->next = copied;
    copied = one;
    copied_areas++;
    pthread_mutex_unlock(&copied_lock);
    return one->area;
}

/* Unmaps all of an area of copies. Returns whether it was one. */
static bool unmap_copies(void *area)
{
    struct copied **at = &copied, *one;

    pthread_mutex_lock(&copied_lock);
    while (*at && (*at)->area != area)
        at = &(*at)->next;
    one = *at;
    if (one) {
        *at = one->next;
        copied_areas--;
        if (one->whole && nr_spare < SPARE_AREAS) {
            one->next = spare;
            spare = one;
            nr_spare++;
        } else {
            munmap(one->area, one->n * PAGE_BYTES);
            free(one);
        }
    }
    pthread_mutex_unlock(&copied_lock);
    return one;
}

void *xenforeignmemory_map2(xenforeignmemory_handle *fmem, uint32_t dom, void *addr, int prot,
                            int flags, size_t n, const xen_pfn_t arr[], int err[])
{
    struct guest *guest;
    int error = tally("xenforeignmemory_map", NULL);

    if (!error && !(guest = guest_of(dom)))
        error = ESRCH;
    if (error) {
        errno = error;
        return NULL;
    }
    if (machine->copies && prot == PROT_READ && !addr && err && scattered(n, arr))
        return map_copies(guest, n, arr, err);
    uint8_t *area = mmap(addr, n * PAGE_BYTES, prot, flags | MAP_SHARED, void_fd(), 0);
    if (area == MAP_FAILED)
        return NULL;
    long bad = map_runs(guest, area, prot, n, arr, err);
    if (bad < 0 || (bad && !err)) {
        error = errno;
        munmap(area, n * PAGE_BYTES);
        errno = error;
        return NULL;
    }
    if (bad)
        wait_for_paged(guest, area, prot, n, arr, err);
    count_area(guest, area, n, arr, err);
    madvise(area, n * PAGE_BYTES, MADV_DONTFORK);
    return area;
}

void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t n,
                           const xen_pfn_t arr[], int err[])
{
    return xenforeignmemory_map2(fmem, dom, NULL, prot, 0, n, arr, err);
}

int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t n)
{
    if (unmap_copies(addr))
        return 0;
    discount_area(addr);
    return munmap(addr, n * PAGE_BYTES);
}

int xenforeignmemory_restrict(xenforeignmemory_handle *fmem, domid_t domid)
{
    errno = refuse("xenforeignmemory_restrict");
    return -1;
}

/* The only resource is the grant table's first page. */
xenforeignmemory_resource_handle *xenforeignmemory_map_resource(
    xenforeignmemory_handle *fmem, domid_t domid, unsigned int type, unsigned int id,
    unsigned long frame, unsigned long nr_frames, void **paddr, int prot, int flags)
{
    const struct guest *guest;
    xenforeignmemory_resource_handle *resource;
    int error = tally("xenforeignmemory_map_resource", NULL);

    if (!error && (type != XENMEM_resource_grant_table ||
                   id != XENMEM_resource_grant_table_id_shared || frame || nr_frames != 1))
        error = refuse("resource %u.%u", type, id);
    if (!error && !(guest = guest_of(domid)))
        error = ESRCH;
    if (error) {
        errno = error;
        return NULL;
    }
    void *address = mmap(*paddr, PAGE_BYTES, prot, flags | MAP_SHARED, guest->grants_fd, 0);
    if (address == MAP_FAILED)
        return NULL;
    resource = calloc(1, sizeof(*resource));
    resource->address = *paddr = address;
    resource->bytes = PAGE_BYTES;
    return resource;
}

int xenforeignmemory_unmap_resource(xenforeignmemory_handle *fmem,
                                    xenforeignmemory_resource_handle *fres)
{
    int result = fres ? munmap(fres->address, fres->bytes) : 0;

    free(fres);
    return result;
}

int xenforeignmemory_resource_size(xenforeignmemory_handle *fmem, domid_t domid, unsigned int type,
                                   unsigned int id, size_t *size)
{
    errno = refuse("xenforeignmemory_resource_size");
    return -1;
}
