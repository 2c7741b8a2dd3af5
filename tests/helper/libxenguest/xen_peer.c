/*
 * libxenctrl and libxenguest of one release (XEN_RELEASE, such as 417) as far as the helper uses
 * them, without a Xen below: every callback is called the way libxc does, and what it got and was
 * answered is logged. Which of the two it is says PEER_GUEST: each has the functions of its own.
 *
 * XEN_PEER says what a save or restore does: plain, fail, rounds, stuck, late (a save that is still
 * at work when its stream is whole, until that is taken away), checkpoints (a restore takes them).
 * XEN_PEER_DIRTY: the dirty pages found after each round of `rounds`. XEN_PEER_RUNS: the
 * hypervisor's release, such as 4.17, where it is not the library's own. XEN_PEER_CLOSED: the
 * interface cannot be opened. XEN_PEER_CPU: a directory with the system CPU policies, files `2` (PV
 * max) and `3` (HVM max) of CPUID leaves; without it there are none. Domain 404 does not exist, domain 2 is PV.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "xen_abi.h"

#define NO_DOMAIN 404
#define PV_DOMAIN 2
#define P2M_SIZE 2048
#define MOST_LEAVES 80
#define MOST_MSRS 2

struct xc_interface_core {
    xentoollog_logger *logger;
};

static inline int of_domain(uint32_t domid)
{
    if (domid != NO_DOMAIN)
        return 0;
    errno = ESRCH;
    return -1;
}

#ifndef PEER_GUEST

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger,
                                unsigned open_flags)
{
    xc_interface *xch;

    if (getenv("XEN_PEER_CLOSED")) {
        errno = ENOENT;
        return NULL;
    }
    xch = malloc(sizeof(*xch));
    xch->logger = logger;
    return xch;
}

int xc_interface_close(xc_interface *xch)
{
    free(xch);
    return 0;
}

int xc_version(xc_interface *xch, int cmd, void *arg)
{
    const char *runs = getenv("XEN_PEER_RUNS");
    unsigned int major = XEN_RELEASE / 100, minor = XEN_RELEASE % 100;

    if (runs)
        sscanf(runs, "%u.%u", &major, &minor);
    if (cmd == 0)
        return major << 16 | minor;
    errno = EINVAL;
    return -1;
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first, unsigned int most,
                          xc_domaininfo_t *info)
{
    unsigned int count = 0;

    /* Domains 0 to 300, and 500. */
    for (; count < most && first <= 500; first++)
        if (first <= 300 || first == 500) {
            memset(&info[count], 0, sizeof(*info));
            info[count].domain = first;
            info[count].tot_pages = 100 + first;
            info[count].max_pages = 200 + first;
            info[count].paged_pages = first == 300 ? 3 : 0;
            info[count].shared_info_frame = 4;
            info[count].cpu_time = 5;
            info[count].nr_online_vcpus = 6;
            info[count].handle[15] = 7;
            info[count].flags = first == PV_DOMAIN ? 0 : XEN_DOMINF_hvm_guest;
            if (first == 300)
                info[count].flags |= XEN_DOMINF_shutdown | XEN_DOMINF_dying | XEN_DOMINF_paused |
                                     SHUTDOWN_suspend << XEN_DOMINF_shutdownshift;
            count++;
        }
    return count;
}

int xc_domain_pause(xc_interface *xch, uint32_t domid) { return of_domain(domid); }
int xc_domain_unpause(xc_interface *xch, uint32_t domid) { return of_domain(domid); }
int xc_domain_destroy(xc_interface *xch, uint32_t domid) { return of_domain(domid); }

int xc_domain_shutdown(xc_interface *xch, uint32_t domid, int reason)
{
    return of_domain(domid);
}

int xc_shadow_control(xc_interface *xch, uint32_t domid, unsigned int sop, SHADOW_PARAMETERS)
{
#if XEN_RELEASE < 416
    if (dirty_bitmap || pages || stats)
        abort();
#endif
    /* XEN_DOMCTL_SHADOW_OP_OFF, which needs none of the others. */
    if (sop || mb || mode)
        abort();
    return of_domain(domid) ? -1 : 16;
}

int xc_hvm_param_get(xc_interface *xch, uint32_t domid, uint32_t param, uint64_t *value)
{
    *value = (uint64_t)param << 40;
    return of_domain(domid);
}

int xc_hvm_param_set(xc_interface *xch, uint32_t domid, uint32_t param, uint64_t value)
{
    return of_domain(domid);
}

#if XEN_RELEASE < 416
int xc_domain_resume(xc_interface *xch, uint32_t domid, int fast) { return of_domain(domid); }
#endif

#else /* PEER_GUEST */

#if XEN_RELEASE >= 416
int xc_domain_resume(xc_interface *xch, uint32_t domid, int fast) { return of_domain(domid); }
#endif

static void say(xc_interface *xch, xentoollog_level level, int errnoval, const char *format, ...)
{
    int kept = errno;
    va_list arguments;

    va_start(arguments, format);
    xch->logger->vmessage(xch->logger, level, errnoval, "xc", format, arguments);
    va_end(arguments);
    if (errno != kept)
        abort();
}

static void progress(xc_interface *xch, const char *what, unsigned long done, unsigned long total)
{
    int percent = total ? done * 100 / total : 0;

    xch->logger->progress(xch->logger, "xc", what, percent, done, total);
}

static int mode_is(const char *mode)
{
    const char *chosen = getenv("XEN_PEER");

    return !strcmp(chosen ? chosen : "plain", mode);
}

static int write_exact(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t written = write(fd, data, size);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return -1;
        data += written;
        size -= written;
    }
    return 0;
}

static int read_exact(int fd, char *data, size_t size)
{
    while (size) {
        ssize_t got = read(fd, data, size);

        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0)
            errno = 0;
        if (got <= 0)
            return -1;
        data += got;
        size -= got;
    }
    return 0;
}

static int write_pages(int fd, unsigned long count)
{
    static char page[4096];

    while (count--)
        if (write_exact(fd, page, sizeof(page)))
            return -1;
    return 0;
}

static int failed(xc_interface *xch, const char *what)
{
    int kept = errno;

    say(xch, XTL_ERROR, kept, "%s (%d = %s): Internal error", what, kept, strerror(kept));
    errno = kept;
    return -1;
}

static int rounds(xc_interface *xch, int io_fd, struct save_callbacks *callbacks)
{
    struct precopy_stats stats = { .dirty_count = P2M_SIZE };
    const char *dirty = getenv("XEN_PEER_DIRTY");
    char name[40];
    int decision;

    if (!callbacks->precopy_policy)
        return 0;
    for (;;) {
        decision = callbacks->precopy_policy(stats, callbacks->data);
        if (decision == XGS_POLICY_ABORT)
            break;
        snprintf(name, sizeof(name), "Frames iteration %u", stats.iteration);
        if (write_pages(io_fd, stats.dirty_count))
            return failed(xch, "Failed to write page data to stream");
        progress(xch, name, stats.dirty_count, stats.dirty_count);
        if (decision != XGS_POLICY_CONTINUE_PRECOPY)
            break;
        stats.iteration++;
        stats.total_written += stats.dirty_count;
        stats.dirty_count = -1;
        decision = callbacks->precopy_policy(stats, callbacks->data);
        if (decision != XGS_POLICY_CONTINUE_PRECOPY)
            break;
        stats.dirty_count = strtol(dirty, (char **)&dirty, 10);
    }
    if (decision == XGS_POLICY_ABORT)
        return failed(xch, "Abort precopy loop");
    say(xch, XTL_INFO, -1, "precopy ends after %u rounds", stats.iteration);
    return 0;
}

int xc_domain_save(xc_interface *xch, int io_fd, uint32_t dom, uint32_t flags,
                   struct save_callbacks *callbacks, xc_stream_type_t stream_type, int recv_fd)
{
    int rc;

    say(xch, XTL_DETAIL, -1, "libxenguest of release %d", XEN_RELEASE);
    say(xch, XTL_DETAIL, -1, "dom %u, flags %u, stream_type %d, recv_fd %d", dom, flags,
        stream_type, recv_fd);
    say(xch, XTL_DEBUG, -1, "callbacks%s%s%s%s%s%s", callbacks->suspend ? " suspend" : "",
        callbacks->precopy_policy ? " precopy_policy" : "",
        callbacks->postcopy ? " postcopy" : "", callbacks->checkpoint ? " checkpoint" : "",
        callbacks->wait_checkpoint ? " wait_checkpoint" : "",
        callbacks->switch_qemu_logdirty ? " switch_qemu_logdirty" : "");
    say(xch, XTL_INFO, EDOM, "%d %ld %llx %s %.3f %c %u %s %.1f %d %d %zu", -1, -2L,
        0x123456789abcdefULL, "three", 4.5, '6', 7u, "acht\xe9", 9.5, 10, 11, (size_t)12);
    progress(xch, "Frames", 1, 3);
    progress(xch, "Frames", 3, 3);
    progress(xch, "Complete", 0, 0);

    if (mode_is("fail")) {
        errno = ENOSPC;
        return failed(xch, "Failed to write page data to stream");
    }
    if (callbacks->switch_qemu_logdirty) {
        rc = callbacks->switch_qemu_logdirty(dom, 1, callbacks->data);
        say(xch, XTL_INFO, -1, "switch_qemu_logdirty = %d", rc);
    }
    if (mode_is("stuck")) {
        while (!write_pages(io_fd, 1024))
            ;
        rc = failed(xch, "Failed to write page data to stream");
        if (callbacks->switch_qemu_logdirty) {
            int kept = errno;

            callbacks->switch_qemu_logdirty(dom, 0, callbacks->data);
            errno = kept;
        }
        return rc;
    }
    if (mode_is("rounds") && rounds(xch, io_fd, callbacks))
        return -1;
    errno = EDOM;
    rc = callbacks->suspend(callbacks->data);
    say(xch, XTL_INFO, errno, "suspend = %d", rc);
    if (rc != 1)
        return failed(xch, "Domain has not been suspended");
    if (stream_type != XC_STREAM_PLAIN) {
        say(xch, XTL_INFO, -1, "postcopy = %d", callbacks->postcopy(callbacks->data));
        say(xch, XTL_INFO, -1, "checkpoint = %d", callbacks->checkpoint(callbacks->data));
    }
    if (write_exact(io_fd, "the stream", 10))
        return failed(xch, "Failed to write page data to stream");
    if (mode_is("late")) {
        say(xch, XTL_INFO, -1, "the stream is whole");
        while ((fcntl(io_fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
            usleep(1000);
    }
    errno = EDOM;
    return 0;
}

/* As xg_sr_restore.c: from the first checkpoint on, a stream that breaks off is the primary's
 * death, and the domain goes on from its last checkpoint. */
static int checkpoints(xc_interface *xch, int io_fd, xc_stream_type_t stream_type,
                       struct restore_callbacks *callbacks)
{
    char octets[10];

    do {
        int rc = callbacks->checkpoint(callbacks->data);

        say(xch, XTL_INFO, -1, "checkpoint = %d", rc);
        if (rc != XGR_CHECKPOINT_SUCCESS)
            return rc == XGR_CHECKPOINT_FAILOVER ? 0 : failed(xch, "checkpoint failed");
    } while (!read_exact(io_fd, octets, sizeof(octets)));
    say(xch, XTL_INFO, -1, stream_type == XC_STREAM_COLO ? "COLO Failover" : "Remus Failover");
    return 0;
}

int xc_domain_restore(xc_interface *xch, int io_fd, uint32_t dom, unsigned int store_evtchn,
                      unsigned long *store_mfn, uint32_t store_domid,
                      unsigned int console_evtchn, unsigned long *console_mfn,
                      uint32_t console_domid, xc_stream_type_t stream_type,
                      struct restore_callbacks *callbacks, int send_back_fd RESTORE_TAIL)
{
    char octets[10];
    int rc;

#if XEN_RELEASE >= 422
    say(xch, XTL_DETAIL, -1, "memflags %u", memflags);
#endif
    say(xch, XTL_DETAIL, -1,
        "dom %u, store %u %u, console %u %u, stream_type %d, send_back_fd %d", dom, store_evtchn,
        store_domid, console_evtchn, console_domid, stream_type, send_back_fd);
    say(xch, XTL_DEBUG, -1, "callbacks%s%s%s%s%s%s",
        callbacks->static_data_done ? " static_data_done" : "",
        callbacks->suspend ? " suspend" : "", callbacks->postcopy ? " postcopy" : "",
        callbacks->checkpoint ? " checkpoint" : "",
        callbacks->wait_checkpoint ? " wait_checkpoint" : "",
        callbacks->restore_results ? " restore_results" : "");
    if (mode_is("stuck")) {
        while (!read_exact(io_fd, octets, sizeof(octets)))
            ;
        return failed(xch, "Failed to read Record Header from stream");
    }
    if (read_exact(io_fd, octets, sizeof(octets)))
        return failed(xch, "Failed to read Image Header from stream");
    say(xch, XTL_DETAIL, -1, "the stream begins with %02x %02x", octets[0] & 0xff, octets[9] & 0xff);
    if (callbacks->static_data_done) {
        rc = callbacks->static_data_done(XGR_SDD_MISSING_CPUID | XGR_SDD_MISSING_MSR,
                                         callbacks->data);
        say(xch, XTL_INFO, -1, "static_data_done = %d", rc);
        if (rc)
            return failed(xch, "static_data_done failed");
    }
    if (stream_type == XC_STREAM_COLO)
        callbacks->restore_results(0x11, 0x22, callbacks->data);
    if (mode_is("checkpoints") && checkpoints(xch, io_fd, stream_type, callbacks))
        return -1;
    *store_mfn = 0xfeffcUL;
    *console_mfn = 0xfefffUL;
    return 0;
}

/* Fills in the leaves of a system policy, and one MSR. */
static int system_policy(unsigned int index, xen_cpuid_leaf_t *leaves, uint32_t *nr_leaves,
                         xen_msr_entry_t *msrs, uint32_t *nr_msrs)
{
    const char *directory = getenv("XEN_PEER_CPU");
    char path[4096];
    FILE *file;

    if (!directory) {
        errno = ENOSYS;
        return -1;
    }
    if (*nr_leaves != MOST_LEAVES || *nr_msrs != MOST_MSRS) {
        errno = ENOBUFS;
        return -1;
    }
    snprintf(path, sizeof(path), "%s/%u", directory, index);
    file = fopen(path, "rb");
    if (!file)
        return -1;
    *nr_leaves = fread(leaves, sizeof(*leaves), *nr_leaves, file);
    fclose(file);
    msrs[0] = (xen_msr_entry_t){ .idx = 0xce };
    *nr_msrs = 1;
    return 0;
}

static int policy_size(uint32_t *nr_leaves, uint32_t *nr_msrs)
{
    *nr_leaves = MOST_LEAVES;
    *nr_msrs = MOST_MSRS;
    return 0;
}

int xc_set_domain_cpu_policy(xc_interface *xch, uint32_t domid, uint32_t nr_leaves,
                             xen_cpuid_leaf_t *leaves, uint32_t nr_msrs, xen_msr_entry_t *msrs,
                             uint32_t *err_leaf, uint32_t *err_subleaf, uint32_t *err_msr)
{
    return of_domain(domid);
}

#if XEN_RELEASE >= 416

struct xc_cpu_policy {
    unsigned int index;
};

int xc_cpu_policy_get_size(xc_interface *xch, uint32_t *nr_leaves, uint32_t *nr_msrs)
{
    return policy_size(nr_leaves, nr_msrs);
}

xc_cpu_policy_t *xc_cpu_policy_init(void) { return calloc(1, sizeof(xc_cpu_policy_t)); }
void xc_cpu_policy_destroy(xc_cpu_policy_t *policy) { free(policy); }

int xc_cpu_policy_get_system(xc_interface *xch, unsigned int index, xc_cpu_policy_t *policy)
{
    policy->index = index;
    return 0;
}

int xc_cpu_policy_get_domain(xc_interface *xch, uint32_t domid, xc_cpu_policy_t *policy)
{
    policy->index = 0;
    return of_domain(domid);
}

int xc_cpu_policy_serialise(xc_interface *xch, const xc_cpu_policy_t *policy,
                            xen_cpuid_leaf_t *leaves, uint32_t *nr_leaves, xen_msr_entry_t *msrs,
                            uint32_t *nr_msrs)
{
    return system_policy(policy->index, leaves, nr_leaves, msrs, nr_msrs);
}

#else

int xc_get_cpu_policy_size(xc_interface *xch, uint32_t *nr_leaves, uint32_t *nr_msrs)
{
    return policy_size(nr_leaves, nr_msrs);
}

int xc_get_system_cpu_policy(xc_interface *xch, uint32_t index, uint32_t *nr_leaves,
                             xen_cpuid_leaf_t *leaves, uint32_t *nr_msrs, xen_msr_entry_t *msrs)
{
    return system_policy(index, leaves, nr_leaves, msrs, nr_msrs);
}

int xc_get_domain_cpu_policy(xc_interface *xch, uint32_t domid, uint32_t *nr_leaves,
                             xen_cpuid_leaf_t *leaves, uint32_t *nr_msrs, xen_msr_entry_t *msrs)
{
    return of_domain(domid) || system_policy(0, leaves, nr_leaves, msrs, nr_msrs);
}

#endif

#endif
