/* memory_op: a guest's pages come and go. Memory paging is in paging.c. */
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

    if (pfn >= domain->capacity || n > domain->capacity - pfn)
        return false;
    /* Xen would put another page there, but here a pfn's memory is always the same. */
    if (domain->paging && domain->ring_pfn - pfn < n) {
        refuse("a page where the ring was");
        return false;
    }
    if (!adjust_pages(domain, n))
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
        uint8_t kind = guest->kinds[i];

        if (kind == HOLE)
            return false;
        guest->kinds[i] = HOLE;
        if (kind == PAGED_OUT || kind == PAGING_IN)
            drop_page(guest, i);
        else
            adjust_pages(domain, -1);
        if (domain->log_dirty)
            guest->dirty[i] = 1;
        /* Xen and the pager still have the ring's. */
        if (!domain->paging || i != domain->ring_pfn)
            fallocate(guest->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, i * PAGE_BYTES,
                      PAGE_BYTES);
    }
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

/* domain_set_outstanding_pages. There is memory without end. */
static long claim_pages(struct guest *guest, void *argument, uint32_t short_by)
{
    const struct xen_memory_reservation *op = argument;
    struct domain *domain = guest->domain;
    uint64_t pages = op->nr_extents;

    if (op->extent_start.p || op->extent_order || op->mem_flags)
        return -EINVAL;
    if (pages &&
        (domain->claimed_pages || pages <= domain->tot_pages || pages > domain->max_pages))
        return -EINVAL;
    domain->claimed_pages = pages ? pages - domain->tot_pages : 0;
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

    if (command == XENMEM_paging_op)
        return do_paging_op(argument);
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
