/* memory_op: a guest's pages come and go.
 *
 * Memory paging (XENMEM_paging_op, in multicalls of many) belongs here, too: nominate and evict make
 * RAM PAGED_OUT, and load makes it RAM again; an access to a PAGED_OUT page puts a request into the
 * ring at HVM parameter 27 and notifies the pager's port (ports.c). */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include <xen/memory.h>

/* What dom0 may ask for at once: 1 GiB. */
#define LARGEST_ORDER 18
#define GARBAGE 0xdb

static long maximum_gpfn(struct guest *guest, void *argument, uint32_t short_by)
{
    return guest->domain->maximum_gpfn;
}

static bool populate(struct guest *guest, xen_pfn_t pfn, uint64_t n)
{
    struct domain *domain = guest->domain;

    if (pfn >= domain->capacity || n > domain->capacity - pfn ||
        n > domain->max_pages - domain->tot_pages)
        return false;
    if (domain->garbage) {
        uint8_t *memory = guest_memory(guest);

        if (!memory)
            return false;
        memset(memory + pfn * PAGE_BYTES, GARBAGE, n * PAGE_BYTES);
    }
    for (uint64_t i = pfn; i < pfn + n; i++) {
        domain->repopulated += guest->kinds[i] != HOLE;
        guest->kinds[i] = RAM;
        if (domain->log_dirty)
            guest->dirty[i] = 1;
    }
    /* A page that was replaced by another still belongs to the domain. */
    domain->tot_pages += n;
    if (pfn + n - 1 > domain->maximum_gpfn)
        domain->maximum_gpfn = pfn + n - 1;
    return true;
}

static bool give_back(struct guest *guest, xen_pfn_t pfn, uint64_t n)
{
    struct domain *domain = guest->domain;

    if (pfn >= domain->capacity || n > domain->capacity - pfn)
        return false;
    for (uint64_t i = pfn; i < pfn + n; i++) {
        if (guest->kinds[i] == HOLE)
            return false;
        guest->kinds[i] = HOLE;
        domain->tot_pages--;
        if (domain->log_dirty)
            guest->dirty[i] = 1;
    }
    fallocate(guest->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pfn * PAGE_BYTES,
              n * PAGE_BYTES);
    return true;
}

/* Returns the number of extents that were done: 0, not an error, whatever is wrong. */
static long each_extent(struct guest *guest, struct xen_memory_reservation *op, uint32_t short_by,
                        bool (*done)(struct guest *, xen_pfn_t, uint64_t))
{
    const xen_pfn_t *pfns = op->extent_start.p;
    uint64_t n = op->nr_extents, i;

    if (op->extent_order > LARGEST_ORDER)
        return 0;
    if (!in_buffer(pfns, n * sizeof(*pfns), "a list of extents"))
        return 0;
    n -= short_by < n ? short_by : n;
    for (i = 0; i < n && done(guest, pfns[i], 1UL << op->extent_order); i++)
        ;
    return i;
}

static long populate_physmap(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_memory_reservation *op = argument;
    long done = each_extent(guest, op, short_by, populate);

    if (done > 0)
        guest->domain->extents[op->extent_order] += done;
    return done;
}

static long decrease_reservation(struct guest *guest, void *argument, uint32_t short_by)
{
    return each_extent(guest, argument, short_by, give_back);
}

static long claim_pages(struct guest *guest, void *argument, uint32_t short_by)
{
    const struct xen_memory_reservation *op = argument;

    if (op->extent_start.p || op->extent_order || op->mem_flags)
        return -EINVAL;
    guest->domain->claimed_pages = op->nr_extents;
    return 0;
}

#define ANSWERED_BY(number, answer) {number, #number, answer}

static const struct operation operations[] = {
    ANSWERED_BY(XENMEM_maximum_gpfn, maximum_gpfn),
    ANSWERED_BY(XENMEM_populate_physmap, populate_physmap),
    ANSWERED_BY(XENMEM_decrease_reservation, decrease_reservation),
    ANSWERED_BY(XENMEM_claim_pages, claim_pages),
};

long do_memory_op(unsigned int command, void *argument)
{
    const struct operation *known = OPERATION(operations, command);
    bool by_domid = command == XENMEM_maximum_gpfn;
    uint32_t short_by;

    if (!known)
        return -refuse("memory_op %u", command);
    int error = tally(known->name, &short_by);
    if (error)
        return -error;
    if (!in_buffer(argument, by_domid ? sizeof(domid_t) : sizeof(struct xen_memory_reservation),
                   known->name))
        return -EFAULT;
    struct guest *guest = guest_of(by_domid ? *(domid_t *)argument
                                            : ((struct xen_memory_reservation *)argument)->domid);
    if (guest)
        return known->answer(guest, argument, short_by);
    return by_domid || command == XENMEM_claim_pages ? -ESRCH : 0;
}
