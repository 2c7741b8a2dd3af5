/* domctl and sysctl: what a save and a restore ask about a domain and about the system. */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include <xen/domctl.h>
#include <xen/hvm/save.h>
#include <xen/sysctl.h>

#define MAX_TYPES 1024

static void fill_info(struct guest *guest, struct xen_domctl_getdomaininfo *info)
{
    const struct domain *domain = guest->domain;

    memset(info, 0, sizeof(*info));
    info->domain = guest->domid;
    info->flags = domain->flags;
    info->tot_pages = domain->tot_pages;
    info->max_pages = domain->max_pages;
    info->outstanding_pages = domain->claimed_pages;
    info->paged_pages = domain->paged_pages;
    info->shared_info_frame = ~0UL;
    info->nr_online_vcpus = 1;
    info->gpaddr_bits = 39;
    info->arch_config.emulation_flags = XEN_X86_EMU_LAPIC;
}

static long getdomaininfo(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_domctl *op = argument;

    fill_info(guest, &op->u.getdomaininfo);
    op->domain = guest->domid;
    return 0;
}

static long getpageframeinfo3(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_domctl_getpageframeinfo3 *op = &((struct xen_domctl *)argument)->u.getpageframeinfo3;
    static const uint32_t types[] = {
        [HOLE] = XEN_DOMCTL_PFINFO_XTAB,
        [RAM] = XEN_DOMCTL_PFINFO_NOTAB,
        [SPECIAL] = XEN_DOMCTL_PFINFO_XTAB,
        [PAGED_OUT] = XEN_DOMCTL_PFINFO_XTAB,
        [BROKEN] = XEN_DOMCTL_PFINFO_BROKEN,
        [UNMAPPABLE] = XEN_DOMCTL_PFINFO_NOTAB,
        [NOMINATED] = XEN_DOMCTL_PFINFO_NOTAB,
        [PAGING_IN] = XEN_DOMCTL_PFINFO_XTAB,
        [RETURNING] = XEN_DOMCTL_PFINFO_NOTAB,
    };
    xen_pfn_t *pfns = (xen_pfn_t *)op->array.p;

    if (op->num > MAX_TYPES)
        return -E2BIG;
    if (!in_buffer(pfns, op->num * sizeof(*pfns), "getpageframeinfo3's array"))
        return -EFAULT;
    for (uint64_t i = 0; i < op->num; i++)
        pfns[i] = types[pfns[i] < guest->domain->capacity ? guest->kinds[pfns[i]] : HOLE];
    return 0;
}

/* What the guest writes to as soon as it is clean. */
static void write_again(struct guest *guest)
{
    uint32_t one_in = guest->domain->writes;

    if (!one_in)
        return;
    for (uint64_t pfn = 0; pfn < guest->domain->capacity; pfn++)
        if (guest->kinds[pfn] == RAM && (pfn * 0x9E3779B97F4A7C15 >> 32) % one_in == 0)
            guest->dirty[pfn] = 1;
}

static long log_dirty_on(struct guest *guest, void *argument, uint32_t short_by)
{
    if (guest->domain->log_dirty)
        return -EINVAL;
    memset(guest->dirty, 0, guest->domain->capacity);
    __atomic_store_n(&guest->domain->log_dirty, 1, __ATOMIC_SEQ_CST);
    write_again(guest);
    return 0;
}

static long log_dirty_off(struct guest *guest, void *argument, uint32_t short_by)
{
    guest->domain->log_dirty = 0;
    return 0;
}

/* Eight pfns at a time: a byte each in, a bit each out. A page that is dirtied meanwhile is reported
 * now or the next time. */
static long log_dirty_bitmap(struct guest *guest, struct xen_domctl_shadow_op *op, bool clean,
                             uint32_t short_by)
{
    uint8_t *bitmap = (uint8_t *)op->dirty_bitmap.p;
    uint64_t *dirty = (uint64_t *)guest->dirty;
    uint64_t bytes = (op->pages + 7) / 8, there = guest->domain->capacity / 8;
    uint32_t found = 0;

    if (op->mode & ~XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL)
        return -EINVAL;
    if (bitmap && !in_buffer(bitmap, bytes, "the dirty bitmap"))
        return -EFAULT;
    /* hvm_mapped_guest_frames_mark_dirty: such pages count as dirty at the last look alone. */
    if (op->mode & XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL && guest->domain->written_by_xen)
        guest->dirty[guest->domain->written_by_xen] = 1;
    for (uint64_t i = 0; i < there; i++) {
        uint64_t word = __atomic_load_n(&dirty[i], __ATOMIC_RELAXED);

        if (word && clean && (i < bytes || !bitmap))
            word = __atomic_exchange_n(&dirty[i], 0, __ATOMIC_SEQ_CST);
        found += __builtin_popcountll(word);
        if (bitmap && i < bytes)
            bitmap[i] = (word * 0x0102040810204080) >> 56;
    }
    if (bitmap && bytes > there)
        memset(bitmap + there, 0, bytes - there);
    if (clean)
        write_again(guest);
    op->stats.dirty_count = found;
    op->stats.fault_count = found;
    op->pages -= short_by < op->pages ? short_by : op->pages;
    return 0;
}

static long log_dirty_clean(struct guest *guest, void *argument, uint32_t short_by)
{
    return log_dirty_bitmap(guest, &((struct xen_domctl *)argument)->u.shadow_op, true, short_by);
}

static long log_dirty_peek(struct guest *guest, void *argument, uint32_t short_by)
{
    return log_dirty_bitmap(guest, &((struct xen_domctl *)argument)->u.shadow_op, false, short_by);
}

/* What helper/hypervisors/xen/hvm_context.py knows of a context. */
_Static_assert(HVM_SAVE_CODE(CPU) == 2, "typecode");
_Static_assert(HVM_SAVE_CODE(VIRIDIAN_DOMAIN) == 15, "typecode");
_Static_assert(HVM_SAVE_CODE(VIRIDIAN_VCPU) == 17, "typecode");
_Static_assert(offsetof(struct hvm_hw_cpu, cr0) == 656, "of struct hvm_hw_cpu");
_Static_assert(offsetof(struct hvm_hw_cpu, cr3) == 672, "of struct hvm_hw_cpu");
_Static_assert(offsetof(struct hvm_viridian_domain_context, reference_tsc) == 24, "its offset");
_Static_assert(offsetof(struct hvm_viridian_vcpu_context, vp_assist_msr) == 0, "its offset");
_Static_assert(offsetof(struct hvm_viridian_vcpu_context, simp_msr) == 16, "its offset");

static long gethvmcontext(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_domctl_hvmcontext *op = &((struct xen_domctl *)argument)->u.hvmcontext;
    uint32_t bytes = guest->domain->context_bytes;

    if (op->buffer.p && op->size < bytes)
        return -ENOSPC;
    op->size = bytes;
    if (op->buffer.p) {
        if (!in_buffer(op->buffer.p, bytes, "the HVM context"))
            return -EFAULT;
        memcpy(op->buffer.p, guest->domain->context, bytes);
    }
    return 0;
}

static long sethvmcontext(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_domctl_hvmcontext *op = &((struct xen_domctl *)argument)->u.hvmcontext;

    if (op->size > MAX_CONTEXT)
        return -ENOSPC;
    if (!in_buffer(op->buffer.p, op->size, "the HVM context"))
        return -EFAULT;
    memcpy(guest->domain->context, op->buffer.p, op->size);
    guest->domain->context_bytes = op->size;
    return 0;
}

static long gettscinfo(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_domctl_tsc_info *op = &((struct xen_domctl *)argument)->u.tsc_info;

    op->tsc_mode = guest->domain->tsc_mode;
    op->gtsc_khz = guest->domain->tsc_khz;
    op->incarnation = guest->domain->tsc_incarnation;
    op->elapsed_nsec = guest->domain->tsc_nsec;
    return 0;
}

static long settscinfo(struct guest *guest, void *argument, uint32_t short_by)
{
    const struct xen_domctl_tsc_info *op = &((struct xen_domctl *)argument)->u.tsc_info;

    guest->domain->tsc_mode = op->tsc_mode;
    guest->domain->tsc_khz = op->gtsc_khz;
    guest->domain->tsc_incarnation = op->incarnation;
    guest->domain->tsc_nsec = op->elapsed_nsec;
    return 0;
}

_Static_assert(sizeof(struct leaf) == sizeof(xen_cpuid_leaf_t), "a leaf is Xen's");
_Static_assert(sizeof(struct msr) == sizeof(xen_msr_entry_t), "an MSR is Xen's");

/* Copies one list of a policy. Too little room is ENOBUFS; without a buffer, it returns the most
 * that a list can have. */
static long give(void *to, uint32_t *room, const void *from, uint32_t n, uint32_t most,
                 size_t bytes)
{
    if (!to) {
        *room = most;
        return 0;
    }
    if (*room < n)
        return -ENOBUFS;
    if (!in_buffer(to, n * bytes, "a CPU policy"))
        return -EFAULT;
    memcpy(to, from, n * bytes);
    *room = n;
    return 0;
}

static long get_cpu_policy(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_domctl_cpu_policy *op = &((struct xen_domctl *)argument)->u.cpu_policy;
    const struct domain *domain = guest->domain;
    long result = give(op->leaves.p, &op->nr_leaves, domain->leaves, domain->nr_leaves, MAX_LEAVES,
                       sizeof(struct leaf));

    return result ? result : give(op->msrs.p, &op->nr_msrs, domain->msrs, domain->nr_msrs, MAX_MSRS,
                                  sizeof(struct msr));
}

static long set_cpu_policy(struct guest *guest, void *argument, uint32_t short_by)
{
    const struct xen_domctl_cpu_policy *op = &((struct xen_domctl *)argument)->u.cpu_policy;
    struct domain *domain = guest->domain;
    if (domain->started)
        return -EEXIST;
    size_t leaves = op->nr_leaves * sizeof(struct leaf), msrs = op->nr_msrs * sizeof(struct msr);

    if (op->nr_leaves > MAX_LEAVES || op->nr_msrs > MAX_MSRS)
        return -E2BIG;
    if ((leaves && !in_buffer(op->leaves.p, leaves, "a CPU policy")) ||
        (msrs && !in_buffer(op->msrs.p, msrs, "a CPU policy")))
        return -EFAULT;
    memcpy(domain->leaves, op->leaves.p, leaves);
    memcpy(domain->msrs, op->msrs.p, msrs);
    domain->nr_leaves = op->nr_leaves;
    domain->nr_msrs = op->nr_msrs;
    return 0;
}

static long pausedomain(struct guest *guest, void *argument, uint32_t short_by)
{
    guest->domain->flags |= XEN_DOMINF_paused;
    return 0;
}

static long unpausedomain(struct guest *guest, void *argument, uint32_t short_by)
{
    guest->domain->flags &= ~XEN_DOMINF_paused;
    return 0;
}

#define ANSWERED_BY(number, answer) {number, #number, answer}

static const struct operation domctls[] = {
    ANSWERED_BY(XEN_DOMCTL_getdomaininfo, getdomaininfo),
    ANSWERED_BY(XEN_DOMCTL_pausedomain, pausedomain),
    ANSWERED_BY(XEN_DOMCTL_unpausedomain, unpausedomain),
    ANSWERED_BY(XEN_DOMCTL_getpageframeinfo3, getpageframeinfo3),
    ANSWERED_BY(XEN_DOMCTL_gethvmcontext, gethvmcontext),
    ANSWERED_BY(XEN_DOMCTL_sethvmcontext, sethvmcontext),
    ANSWERED_BY(XEN_DOMCTL_gettscinfo, gettscinfo),
    ANSWERED_BY(XEN_DOMCTL_settscinfo, settscinfo),
    ANSWERED_BY(XEN_DOMCTL_get_cpu_policy, get_cpu_policy),
    ANSWERED_BY(XEN_DOMCTL_set_cpu_policy, set_cpu_policy),
};

static const struct operation shadow_ops[] = {
    ANSWERED_BY(XEN_DOMCTL_SHADOW_OP_OFF, log_dirty_off),
    ANSWERED_BY(XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, log_dirty_on),
    ANSWERED_BY(XEN_DOMCTL_SHADOW_OP_CLEAN, log_dirty_clean),
    ANSWERED_BY(XEN_DOMCTL_SHADOW_OP_PEEK, log_dirty_peek),
};

static const struct operation paging_ops[] = {
    ANSWERED_BY(XEN_VM_EVENT_ENABLE, paging_enable),
    ANSWERED_BY(XEN_VM_EVENT_DISABLE, paging_disable),
    ANSWERED_BY(XEN_VM_EVENT_RESUME, paging_resume),
};

long do_domctl(void *argument)
{
    struct xen_domctl *op = argument;
    const struct operation *known;
    uint32_t short_by;

    if (!in_buffer(op, sizeof(*op), "a domctl"))
        return -EFAULT;
    if (op->interface_version != XEN_DOMCTL_INTERFACE_VERSION)
        return -EACCES;
    if (op->cmd == XEN_DOMCTL_shadow_op) {
        known = OPERATION(shadow_ops, op->u.shadow_op.op);
        if (!known)
            return -refuse("XEN_DOMCTL_shadow_op %u", op->u.shadow_op.op);
    } else if (op->cmd == XEN_DOMCTL_vm_event_op &&
               op->u.vm_event_op.mode == XEN_DOMCTL_VM_EVENT_OP_PAGING) {
        known = OPERATION(paging_ops, op->u.vm_event_op.op);
        if (!known)
            return -refuse("XEN_DOMCTL_vm_event_op %u", op->u.vm_event_op.op);
    } else if (!(known = OPERATION(domctls, op->cmd)))
        return -refuse("domctl %u", op->cmd);

    int error = tally(known->name, &short_by);
    if (error)
        return -error;
    struct guest *guest = guest_of(op->domain);
#if XEN_DOMCTL_INTERFACE_VERSION < 0x16
    /* Up to 4.17 it returns this domain or the next. */
    if (!guest && known->answer == getdomaininfo)
        guest = guest_from(op->domain);
#endif
    return guest ? known->answer(guest, op, short_by) : -ESRCH;
}

static long getdomaininfolist(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_sysctl_getdomaininfolist *op = &((struct xen_sysctl *)argument)->u.getdomaininfolist;
    uint32_t first = op->first_domain, n = 0;

    if (!in_buffer(op->buffer.p, op->max_domains * sizeof(*op->buffer.p), "a list of domains"))
        return -EFAULT;
    while (n < op->max_domains && (guest = guest_from(first))) {
        fill_info(guest, &op->buffer.p[n++]);
        first = guest->domid + 1;
    }
    op->num_domains = n;
    return 0;
}

static long system_cpu_policy(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_sysctl_cpu_policy *op = &((struct xen_sysctl *)argument)->u.cpu_policy;
    long result = give(op->leaves.p, &op->nr_leaves, machine->leaves, machine->nr_leaves,
                       MAX_LEAVES, sizeof(struct leaf));

    return result ? result : give(op->msrs.p, &op->nr_msrs, machine->msrs, machine->nr_msrs,
                                  MAX_MSRS, sizeof(struct msr));
}

static const struct operation sysctls[] = {
    ANSWERED_BY(XEN_SYSCTL_getdomaininfolist, getdomaininfolist),
    ANSWERED_BY(XEN_SYSCTL_get_cpu_policy, system_cpu_policy),
};

long do_sysctl(void *argument)
{
    struct xen_sysctl *op = argument;
    uint32_t short_by;

    if (!in_buffer(op, sizeof(*op), "a sysctl"))
        return -EFAULT;
    if (op->interface_version != XEN_SYSCTL_INTERFACE_VERSION)
        return -EACCES;
    const struct operation *known = OPERATION(sysctls, op->cmd);
    if (!known)
        return -refuse("sysctl %u", op->cmd);
    int error = tally(known->name, &short_by);
    return error ? -error : known->answer(NULL, op, short_by);
}
