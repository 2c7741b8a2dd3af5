/*
 * What xen_peer.c needs of the headers of Xen 4.14 to 4.22, by -DXEN_RELEASE=414 to 422.
 *
 * With -DXEN_HEADERS the types are those of Xen's own headers, and the compiler compares the
 * functions declared here with Xen's declarations.
 */
#ifndef XEN_ABI_H
#define XEN_ABI_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef XEN_HEADERS

#include <xenctrl.h>
#include <xenguest.h>
#include <xentoollog.h>

#else

typedef enum {
    XTL_NONE,
    XTL_DEBUG,
    XTL_VERBOSE,
    XTL_DETAIL,
    XTL_PROGRESS,
    XTL_INFO,
    XTL_NOTICE,
    XTL_WARN,
    XTL_ERROR,
    XTL_CRITICAL,
} xentoollog_level;

typedef struct xentoollog_logger xentoollog_logger;
struct xentoollog_logger {
    void (*vmessage)(xentoollog_logger *, xentoollog_level, int errnoval, const char *context,
                     const char *format, va_list);
    void (*progress)(xentoollog_logger *, const char *context, const char *doing_what, int percent,
                     unsigned long done, unsigned long total);
    void (*destroy)(xentoollog_logger *);
};

typedef struct xc_interface_core xc_interface;
typedef unsigned long xen_pfn_t;

#define SHUTDOWN_suspend 2

enum {
    XEN_DOMINF_dying = 0x1,
    XEN_DOMINF_hvm_guest = 0x2,
    XEN_DOMINF_shutdown = 0x4,
    XEN_DOMINF_paused = 0x8,
    XEN_DOMINF_shutdownshift = 16,
};

typedef struct {
    uint16_t domain;
    uint32_t flags;
    uint64_t tot_pages, max_pages, outstanding_pages, shr_pages, paged_pages, shared_info_frame;
    uint64_t cpu_time;
    uint32_t nr_online_vcpus, max_vcpu_id, ssidref;
    uint8_t handle[16];
    uint32_t cpupool;
#if XEN_RELEASE >= 416
    uint8_t gpaddr_bits, pad2[7];
#endif
    struct {
        uint32_t emulation_flags;
#if XEN_RELEASE >= 415
        uint32_t misc_flags;
#endif
    } arch_config;
} __attribute__((aligned(8))) xc_domaininfo_t;

#if XEN_RELEASE < 416
typedef struct xc_hypercall_buffer xc_hypercall_buffer_t;
typedef struct xen_domctl_shadow_op_stats xc_shadow_op_stats_t;
#endif

typedef struct {
    uint32_t leaf, subleaf, a, b, c, d;
} xen_cpuid_leaf_t;

typedef struct {
    uint32_t idx, flags;
    uint64_t val;
} xen_msr_entry_t;

#if XEN_RELEASE >= 416
typedef struct xc_cpu_policy xc_cpu_policy_t;
#endif

typedef enum { XC_STREAM_PLAIN, XC_STREAM_REMUS, XC_STREAM_COLO } xc_stream_type_t;

struct precopy_stats {
    unsigned int iteration;
#if XEN_RELEASE >= 415
    unsigned long total_written;
#else
    unsigned int total_written;
#endif
    long dirty_count;
};

enum { XGS_POLICY_ABORT = -1, XGS_POLICY_CONTINUE_PRECOPY, XGS_POLICY_STOP_AND_COPY };

struct save_callbacks {
    int (*suspend)(void *);
    int (*precopy_policy)(struct precopy_stats, void *);
    int (*postcopy)(void *);
    int (*checkpoint)(void *);
    int (*wait_checkpoint)(void *);
    int (*switch_qemu_logdirty)(uint32_t domid, unsigned int enable, void *);
    void *data;
};

enum { XGR_SDD_MISSING_CPUID = 1, XGR_SDD_MISSING_MSR = 2 };
enum { XGR_CHECKPOINT_ERROR, XGR_CHECKPOINT_SUCCESS, XGR_CHECKPOINT_FAILOVER };

struct restore_callbacks {
    int (*static_data_done)(unsigned int missing, void *);
    int (*suspend)(void *);
    int (*postcopy)(void *);
    int (*checkpoint)(void *);
    int (*wait_checkpoint)(void *);
    void (*restore_results)(xen_pfn_t store_gfn, xen_pfn_t console_gfn, void *);
    void *data;
};

#endif /* XEN_HEADERS */

xc_interface *xc_interface_open(xentoollog_logger *, xentoollog_logger *, unsigned int);
int xc_interface_close(xc_interface *);
int xc_version(xc_interface *, int cmd, void *arg);

int xc_domain_getinfolist(xc_interface *, uint32_t first, unsigned int most, xc_domaininfo_t *);
int xc_domain_pause(xc_interface *, uint32_t domid);
int xc_domain_unpause(xc_interface *, uint32_t domid);
int xc_domain_destroy(xc_interface *, uint32_t domid);
int xc_domain_resume(xc_interface *, uint32_t domid, int fast);
int xc_domain_shutdown(xc_interface *, uint32_t domid, int reason);
int xc_hvm_param_get(xc_interface *, uint32_t domid, uint32_t param, uint64_t *value);
int xc_hvm_param_set(xc_interface *, uint32_t domid, uint32_t param, uint64_t value);

#if XEN_RELEASE >= 416
#define SHADOW_PARAMETERS unsigned int *mb, unsigned int mode
#else
#define SHADOW_PARAMETERS                                                                          \
    xc_hypercall_buffer_t *dirty_bitmap, unsigned long pages, unsigned long *mb, uint32_t mode,    \
        xc_shadow_op_stats_t *stats
#endif
int xc_shadow_control(xc_interface *, uint32_t domid, unsigned int sop, SHADOW_PARAMETERS);

int xc_domain_save(xc_interface *, int io_fd, uint32_t domid, uint32_t flags,
                   struct save_callbacks *, xc_stream_type_t, int recv_fd);

#if XEN_RELEASE >= 422
#define RESTORE_TAIL , unsigned int memflags
#else
#define RESTORE_TAIL
#endif
int xc_domain_restore(xc_interface *, int io_fd, uint32_t domid, unsigned int store_evtchn,
                      unsigned long *store_mfn, uint32_t store_domid, unsigned int console_evtchn,
                      unsigned long *console_mfn, uint32_t console_domid, xc_stream_type_t,
                      struct restore_callbacks *, int send_back_fd RESTORE_TAIL);

int xc_set_domain_cpu_policy(xc_interface *, uint32_t domid, uint32_t nr_leaves,
                             xen_cpuid_leaf_t *, uint32_t nr_msrs, xen_msr_entry_t *,
                             uint32_t *err_leaf, uint32_t *err_subleaf, uint32_t *err_msr);
#if XEN_RELEASE >= 416
int xc_cpu_policy_get_size(xc_interface *, uint32_t *nr_leaves, uint32_t *nr_msrs);
xc_cpu_policy_t *xc_cpu_policy_init(void);
void xc_cpu_policy_destroy(xc_cpu_policy_t *);
int xc_cpu_policy_get_system(xc_interface *, unsigned int index, xc_cpu_policy_t *);
int xc_cpu_policy_get_domain(xc_interface *, uint32_t domid, xc_cpu_policy_t *);
int xc_cpu_policy_serialise(xc_interface *, const xc_cpu_policy_t *, xen_cpuid_leaf_t *,
                            uint32_t *nr_leaves, xen_msr_entry_t *, uint32_t *nr_msrs);
#else
int xc_get_cpu_policy_size(xc_interface *, uint32_t *nr_leaves, uint32_t *nr_msrs);
int xc_get_system_cpu_policy(xc_interface *, uint32_t index, uint32_t *nr_leaves,
                             xen_cpuid_leaf_t *, uint32_t *nr_msrs, xen_msr_entry_t *);
int xc_get_domain_cpu_policy(xc_interface *, uint32_t domid, uint32_t *nr_leaves,
                             xen_cpuid_leaf_t *, uint32_t *nr_msrs, xen_msr_entry_t *);
#endif

#endif
