/* Memory paging: Xen's side of a pager's ring, and the pages that go and come back.
 *
 * As in Xen's mem_paging.c and vm_event.c: a request keeps its place in the ring until a response has
 * taken it, dom0's own requests and those of dropped pages too, and a vCPU that finds no place waits
 * for one. A vCPU that is paused for a request goes on when the response to it has been taken, which
 * must carry the interface's version. */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xen/domctl.h>
#include <xen/hvm/params.h>
#include <xen/memory.h>
#include <xen/sched.h>

#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/vm_event.h>

/* The domain's end of the event channel. */
#define PORT 23

bool adjust_pages(struct domain *domain, int64_t pages)
{
    if (pages > 0 && (uint64_t)pages > domain->max_pages - domain->tot_pages)
        return false;
    domain->tot_pages += pages;
    if (domain->claimed_pages) {
        int64_t left = (int64_t)domain->claimed_pages - pages;

        domain->claimed_pages = left > 0 ? left : 0;
    }
    return true;
}

static void hold(struct domain *domain)
{
    while (__atomic_exchange_n(&domain->ring_lock, 1, __ATOMIC_ACQUIRE))
        ;
}

static void let_go(struct domain *domain)
{
    __atomic_store_n(&domain->ring_lock, 0, __ATOMIC_RELEASE);
}

static vm_event_front_ring_t ring_of(struct guest *guest)
{
    uint8_t *page = guest_memory(guest) + guest->domain->ring_pfn * PAGE_BYTES;
    vm_event_sring_t *shared = (vm_event_sring_t *)page;

    return (vm_event_front_ring_t){
        .req_prod_pvt = guest->domain->ring_req_prod,
        .rsp_cons = guest->domain->ring_rsp_cons,
        .nr_ents = __RING_SIZE(shared, PAGE_BYTES),
        .sring = shared,
    };
}

static void tell(const char *fifo, struct guest *guest, uint8_t byte)
{
    int fd = open_fifo(fifo, guest->domid);

    if (fd < 0 || write(fd, &byte, 1) < 0)
        refuse("an event in %s-%u", fifo, guest->domid);
    close(fd);
}

static bool is_out(const struct guest *guest, uint64_t pfn)
{
    return guest->kinds[pfn] == PAGED_OUT || guest->kinds[pfn] == PAGING_IN;
}

/* Puts a request into the ring, if there is a place. The lock is held. */
static bool put(struct guest *guest, uint32_t flags, uint32_t vcpu, uint64_t pfn, uint32_t how)
{
    vm_event_front_ring_t ring = ring_of(guest);

    if (!RING_FREE_REQUESTS(&ring))
        return false;
    vm_event_request_t *request = RING_GET_REQUEST(&ring, ring.req_prod_pvt);
    memset(request, 0, sizeof(*request));
    request->version = VM_EVENT_INTERFACE_VERSION;
    request->flags = flags;
    request->reason = VM_EVENT_REASON_MEM_PAGING;
    request->vcpu_id = vcpu;
    request->u.mem_paging.gfn = pfn;
    request->u.mem_paging.flags = how;
    ring.req_prod_pvt++;
    RING_PUSH_REQUESTS(&ring);
    guest->domain->ring_req_prod = ring.req_prod_pvt;
    return true;
}

/* p2m_mem_paging_populate: the page that a vCPU of the guest needs. Returns whether the pager was
 * asked; if not, the vCPU is queued. The lock is held. */
static bool ask(struct guest *guest, uint32_t vcpu, uint64_t pfn)
{
    struct domain *domain = guest->domain;
    uint8_t kind = guest->kinds[pfn];
    bool kept = kind == NOMINATED || kind == RETURNING;

    if (!put(guest, VM_EVENT_FLAG_VCPU_PAUSED, vcpu, pfn, kept ? MEM_PAGING_EVICT_FAIL : 0)) {
        domain->queued[vcpu] = pfn + 1;
        return false;
    }
    guest->kinds[pfn] = kept ? RETURNING : PAGING_IN;
    domain->queued[vcpu] = 0;
    domain->pauses[vcpu]++;
    return true;
}

void request_foreign(struct guest *guest, uint64_t pfn)
{
    bool asked = false;

    hold(guest->domain);
    /* dom0's own vCPU, whose number says nothing about the guest's. */
    if (guest->domain->paging && guest->kinds[pfn] == PAGED_OUT &&
        (asked = put(guest, VM_EVENT_FLAG_FOREIGN, 0, pfn, 0)))
        guest->kinds[pfn] = PAGING_IN;
    let_go(guest->domain);
    if (asked)
        tell("events", guest, 1);
}

void drop_page(struct guest *guest, uint64_t pfn)
{
    bool told;

    hold(guest->domain);
    guest->domain->paged_pages--;
    told = guest->domain->paging && put(guest, 0, 0, pfn, MEM_PAGING_DROP_PAGE);
    let_go(guest->domain);
    if (told)
        tell("events", guest, 1);
}

/* Takes the responses: vm_event_resume. */
static long take_responses(struct guest *guest)
{
    struct domain *domain = guest->domain;
    uint8_t go_on[64];
    unsigned int n = 0;
    bool asked = false;

    hold(domain);
    if (!domain->paging) {
        let_go(domain);
        return -ENODEV;
    }
    vm_event_front_ring_t ring = ring_of(guest);
    while (RING_HAS_UNCONSUMED_RESPONSES(&ring) && n < sizeof(go_on) - MAX_VCPUS) {
        vm_event_response_t response = *RING_GET_RESPONSE(&ring, ring.rsp_cons);

        ring.rsp_cons++;
        ring.sring->rsp_event = ring.rsp_cons + 1;
        domain->ring_rsp_cons = ring.rsp_cons;
        if (response.version != VM_EVENT_INTERFACE_VERSION) {
            refuse("a response of version %u", response.version);
            continue;
        }
        if (response.vcpu_id >= MAX_VCPUS || !(response.flags & VM_EVENT_FLAG_VCPU_PAUSED))
            continue;
        if (domain->pauses[response.vcpu_id]) {
            domain->pauses[response.vcpu_id]--;
            go_on[n++] = response.vcpu_id;
        } else
            refuse("a response for vCPU %u, which waits for none", response.vcpu_id);
    }
    for (unsigned int vcpu = 0; vcpu < MAX_VCPUS; vcpu++)
        if (domain->queued[vcpu] && is_out(guest, domain->queued[vcpu] - 1))
            asked |= ask(guest, vcpu, domain->queued[vcpu] - 1);
        else if (domain->queued[vcpu]) {
            domain->queued[vcpu] = 0;
            go_on[n++] = vcpu;
        }
    let_go(domain);
    if (asked)
        tell("events", guest, 1);
    for (unsigned int i = 0; i < n; i++)
        tell("vcpus", guest, go_on[i]);
    return 0;
}

#define DYING(domain) ((domain)->flags & XEN_DOMINF_dying)

long paging_enable(struct guest *guest, void *argument, uint32_t short_by)
{
    struct domain *domain = guest->domain;
    uint64_t pfn = domain->params[HVM_PARAM_PAGING_RING_PFN];

    if (DYING(domain))
        return 0;
    if (domain->paging)
        return -EBUSY;
    if (!pfn)
        return -EOPNOTSUPP;
    if (pfn >= domain->capacity || guest->kinds[pfn] != RAM || !guest_memory(guest))
        return -EINVAL;
    domain->ring_pfn = pfn;
    vm_event_front_ring_t ring = ring_of(guest);
    FRONT_RING_INIT(&ring, ring.sring, PAGE_BYTES);
    domain->ring_req_prod = domain->ring_rsp_cons = 0;
    domain->paging = 1;
    ((struct xen_domctl *)argument)->u.vm_event_op.u.enable.port = PORT;
    return 0;
}

long paging_disable(struct guest *guest, void *argument, uint32_t short_by)
{
    struct domain *domain = guest->domain;
    long result = 0;

    if (DYING(domain))
        return 0;
    hold(domain);
    if (!domain->paging)
        result = -EINVAL;
    for (unsigned int vcpu = 0; vcpu < MAX_VCPUS; vcpu++)
        if (domain->queued[vcpu])
            result = -EBUSY;
    if (!result) {
        domain->paging = 0;
        /* The ring's page was Xen's alone since it was taken from the guest. */
        if (guest->kinds[domain->ring_pfn] == HOLE)
            fallocate(guest->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      domain->ring_pfn * PAGE_BYTES, PAGE_BYTES);
    }
    let_go(domain);
    return result;
}

long paging_resume(struct guest *guest, void *argument, uint32_t short_by)
{
    return DYING(guest->domain) ? 0 : take_responses(guest);
}

void hypercalls_notify(uint32_t domid)
{
    struct guest *guest = guest_of(domid);

    if (guest && !DYING(guest->domain))
        take_responses(guest);
}

static long nominate(struct guest *guest, uint64_t pfn, const void *buffer)
{
    if (guest->kinds[pfn] != RAM || guest->mapped[pfn])
        return -EBUSY;
    guest->kinds[pfn] = NOMINATED;
    return 0;
}

static long evict(struct guest *guest, uint64_t pfn, const void *buffer)
{
    if (guest->kinds[pfn] != NOMINATED || guest->mapped[pfn])
        return -EBUSY;
    guest->kinds[pfn] = PAGED_OUT;
    guest->domain->paged_pages++;
    adjust_pages(guest->domain, -1);
    if (!machine->keeps)
        fallocate(guest->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pfn * PAGE_BYTES,
                  PAGE_BYTES);
    return 0;
}

static long prep(struct guest *guest, uint64_t pfn, const void *buffer)
{
    struct domain *domain = guest->domain;

    if (is_out(guest, pfn)) {
        if (!buffer)
            return -EINVAL;
        if (!in_buffer(buffer, PAGE_BYTES, "a page's contents"))
            return -EFAULT;
        if (!adjust_pages(domain, 1))
            return -ENOMEM;
        memcpy(guest_memory(guest) + pfn * PAGE_BYTES, buffer, PAGE_BYTES);
        domain->paged_pages--;
    } else if (guest->kinds[pfn] != RETURNING)
        return -ENOENT;
    /* It is p2m_ram_logdirty while dirty pages are logged, but not dirty. */
    __atomic_store_n(&guest->kinds[pfn], RAM, __ATOMIC_RELEASE);
    return 0;
}

static const struct {
    const char *name;
    long (*answer)(struct guest *guest, uint64_t pfn, const void *buffer);
} operations[] = {
    [XENMEM_paging_op_nominate] = {"XENMEM_paging_op_nominate", nominate},
    [XENMEM_paging_op_evict] = {"XENMEM_paging_op_evict", evict},
    [XENMEM_paging_op_prep] = {"XENMEM_paging_op_prep", prep},
};

long do_paging_op(struct xen_mem_paging_op *op)
{
    if (!in_buffer(op, sizeof(*op), "XENMEM_paging_op"))
        return -EFAULT;
    if (op->op >= sizeof(operations) / sizeof(*operations))
        return -ENOSYS;
    int error = tally(operations[op->op].name, NULL);
    if (error)
        return -error;
    struct guest *guest = guest_of(op->domain);
    if (!guest || DYING(guest->domain))
        return -ESRCH;
    if (!guest->domain->paging)
        return -ENODEV;
    if (op->gfn >= guest->domain->capacity)
        return op->op == XENMEM_paging_op_prep ? -ENOENT : -EBUSY;
    hold(guest->domain);
    long result = operations[op->op].answer(guest, op->gfn, op->buffer.p);
    let_go(guest->domain);
    return result;
}

/* For the tests, which play the guest. */

/* A vCPU reads a page, or writes to it. Returns 0 if the page is there, 1 if the vCPU now waits, or a
 * negative errno: ENXIO for a pfn without a page, ESRCH without the domain, and EFAULT if there is no
 * pager, which is the domain's end. */
int hypercalls_access(const char *directory, uint32_t domid, uint32_t vcpu, uint64_t pfn, int writes)
{
    int result = 0;

    if (!machine_look(directory))
        return -errno;
    struct guest *guest = guest_of(domid);
    if (!guest || DYING(guest->domain) || vcpu >= MAX_VCPUS)
        result = -ESRCH;
    else {
        bool asked = false;

        hold(guest->domain);
        uint8_t kind = pfn < guest->domain->capacity ? guest->kinds[pfn] : HOLE;
        if ((kind != HOLE && is_out(guest, pfn)) ||
            (writes && (kind == NOMINATED || kind == RETURNING))) {
            if (guest->domain->paging) {
                asked = ask(guest, vcpu, pfn);
                result = 1;
            } else {
                guest->domain->flags |= XEN_DOMINF_shutdown | SHUTDOWN_crash
                                                                  << XEN_DOMINF_shutdownshift;
                result = -EFAULT;
            }
        } else if (kind == HOLE || kind == BROKEN)
            result = -ENXIO;
        let_go(guest->domain);
        if (asked)
            tell("events", guest, 1);
    }
    machine_look_away();
    return result;
}

/* The guest gives a page back that is paged out. Returns 0 or a negative errno. */
int hypercalls_release(const char *directory, uint32_t domid, uint64_t pfn)
{
    int result = -ENXIO;

    if (!machine_look(directory))
        return -errno;
    struct guest *guest = guest_of(domid);
    if (guest && is_out(guest, pfn)) {
        guest->kinds[pfn] = HOLE;
        drop_page(guest, pfn);
        result = 0;
    }
    machine_look_away();
    return result;
}
