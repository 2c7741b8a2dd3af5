/* A machine without a hypervisor: the state that the stand-ins of Xen's libraries share.
 *
 * A machine is a directory, named by HYPERCALLS_MACHINE. All processes map its files:
 *   machine      struct machine: what was called how often, what is to fail, what is still held
 *   domain-N     struct domain, then for each pfn a byte, its kind, another, whether it is dirty,
 *                and 16 bits, how often it is mapped now
 *   memory-N     the guest's memory: the page of a pfn is at pfn * 4096
 *   grants-N     the first page of its grant table
 *   events-N     a FIFO: a byte is an event for the domain's pager
 *   vcpus-N      a FIFO: a byte is the number of a vCPU that a pager has let go on
 * tests/hypercalls/machine.py makes them; build.py checks its structures against these.
 */
#ifndef HYPERCALLS_MACHINE_H
#define HYPERCALLS_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define __XEN_TOOLS__ 1
#include <xen/xen.h>

#define PAGE_BYTES 4096UL
#define MAX_TALLIES 256
#define MAX_LEAVES 256
#define MAX_MSRS 64
#define MAX_CONTEXT 65536
#define MAX_PARAMS 64
#define MAX_ORDER 32
#define MAX_VCPUS 16

/* What is at a pfn. */
enum kind {
    HOLE,       /* nothing: XTAB, cannot be mapped */
    RAM,
    SPECIAL,    /* a page of Xen's own, such as shared_info: XTAB, but can be mapped */
    PAGED_OUT,  /* XTAB; mapping it fails with ENOENT */
    BROKEN,     /* its own type; cannot be mapped */
    UNMAPPABLE, /* RAM that cannot be mapped: EFAULT */
    NOMINATED,  /* RAM that may be evicted (p2m_ram_paging_out) */
    PAGING_IN,  /* PAGED_OUT, and its pager has been asked for it (p2m_ram_paging_in) */
    RETURNING,  /* NOMINATED, and its pager has been asked for it (p2m_ram_paging_in) */
};

/* One kind of hypercall or library call, by name. Calls fail_from to fail_to, counted from 1, fail
 * with fail_errno, or do less by short_by. */
struct tally {
    char name[56];
    uint64_t count;
    uint64_t fail_from;
    uint64_t fail_to;
    int32_t fail_errno;
    uint32_t short_by;
    uint32_t unknown; /* there is no answer to it */
    uint32_t pad;
};

struct leaf {
    uint32_t leaf, subleaf, a, b, c, d;
};

struct msr {
    uint32_t index, flags;
    uint64_t value;
};

struct machine {
    uint32_t nr_tallies;
    uint32_t lock;          /* held while a tally is added */
    uint32_t version;       /* Xen's: major << 16 | minor */
    uint32_t nr_leaves;     /* of the system's CPU policies, which are all the same */
    uint32_t nr_msrs;
    uint32_t copies;        /* scattered pages that are mapped for reading are copied */
    uint32_t keeps;         /* evicted pages keep their memory and contents: for benchmarks */
    uint32_t pad;
    int64_t buffers_held;   /* hypercall buffers that are allocated now */
    int64_t handles_open;   /* of libraries, now */
    int64_t mappings_left;  /* of guests' memory, after a process closed its last handle */
    struct leaf leaves[MAX_LEAVES];
    struct msr msrs[MAX_MSRS];
    struct tally tallies[MAX_TALLIES];
};

struct domain {
    uint64_t capacity;      /* pfns that the files have room for */
    uint64_t maximum_gpfn;
    uint64_t tot_pages;
    uint64_t max_pages;
    uint64_t claimed_pages;
    uint64_t paged_pages;
    uint64_t repopulated;   /* pages that replaced another */
    uint32_t flags;         /* XEN_DOMINF_* */
    uint32_t log_dirty;
    uint32_t garbage;       /* fresh pages are full of it */
    uint32_t tsc_mode;
    uint32_t tsc_khz;
    uint32_t tsc_incarnation;
    uint64_t tsc_nsec;
    uint64_t written_by_xen; /* a page that Xen itself has mapped, and writes unseen; 0: none */
    uint64_t params[MAX_PARAMS];
    uint64_t extents[MAX_ORDER]; /* that were populated, by order */
    uint32_t context_bytes;
    uint32_t nr_leaves;
    uint32_t nr_msrs;
    uint32_t started;       /* it has run: its CPU policy can no longer be set */
    uint32_t writes;        /* one page of so many is dirty again as soon as it is clean; 0: none */
    uint32_t gone;          /* destroyed, and nothing is left of it */
    uint32_t paging;        /* it has a pager */
    uint32_t ring_lock;     /* held while the ring and its counters are changed */
    uint32_t ring_req_prod; /* Xen's own counters of the ring */
    uint32_t ring_rsp_cons;
    uint64_t ring_pfn;
    uint64_t queued[MAX_VCPUS]; /* 1 + the pfn for which a vCPU waits to get into the ring */
    uint32_t pauses[MAX_VCPUS]; /* requests for which a vCPU is paused */
    struct leaf leaves[MAX_LEAVES];
    struct msr msrs[MAX_MSRS];
    uint8_t context[MAX_CONTEXT];
};

/* A domain, as mapped by this process. */
struct guest {
    struct guest *next;
    domid_t domid;
    struct domain *domain;
    uint8_t *kinds;
    uint8_t *dirty;
    uint16_t *mapped;
    int memory_fd;
    int grants_fd;
    uint8_t *memory;        /* all of it, or NULL until it is needed */
    size_t state_bytes;
};

extern struct machine *machine;

/* The machine's files are open from the first handle to the last. Returns false with errno. */
bool machine_get(void);
void machine_put(void);

/* Areas of copied pages that this process has now (foreignmemory.c). */
extern unsigned int copied_areas;

/* What this process still has mapped is no longer counted (foreignmemory.c). */
void forget_areas(void);

/* For a process that is no part of the machine, such as the tests': none of its handles and mappings
 * are counted. */
bool machine_look(const char *named);
void machine_look_away(void);

/* Opens one of a domain's FIFOs. Returns -1 with errno. */
int open_fifo(const char *kind, uint32_t domid);

/* An empty file: touching a mapping of it is SIGBUS. */
int void_fd(void);

/* NULL if there is no such domain. */
struct guest *guest_of(uint32_t domid);
struct guest *guest_from(uint32_t domid); /* it, or the next */
uint8_t *guest_memory(struct guest *guest); /* NULL with errno */

/* Counts a call. Returns the errno it is to fail with, or 0; `short_by` then says how much less it
 * is to do. */
int tally(const char *name, uint32_t *short_by);

/* Counts an unknown call, and reports it on stderr. Returns ENOSYS. */
int refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether these bytes are in an allocated hypercall buffer; if not, says so on stderr. A privcmd that
 * is handed other memory may find it paged out, which is EFAULT, sometimes. */
bool in_buffer(const void *start, size_t bytes, const char *what);

/* A hypercall's number in its family, its name, and what answers it: the hypercall's result. */
struct operation {
    unsigned int number;
    const char *name;
    long (*answer)(struct guest *guest, void *argument, uint32_t short_by);
};

/* The families. `argument` is the hypercall's own. */
long do_domctl(void *argument);
long do_sysctl(void *argument);
long do_memory_op(unsigned int command, void *argument);
long do_hvm_op(unsigned int command, void *argument);

/* Memory paging (paging.c). */
struct xen_mem_paging_op;
long do_paging_op(struct xen_mem_paging_op *op);
long paging_enable(struct guest *guest, void *argument, uint32_t short_by);
long paging_disable(struct guest *guest, void *argument, uint32_t short_by);
long paging_resume(struct guest *guest, void *argument, uint32_t short_by);

/* dom0 wants to map a page that is paged out: its pager is asked for it once. */
void request_foreign(struct guest *guest, uint64_t pfn);

/* The guest gives back a page that is paged out: its pager is told. */
void drop_page(struct guest *guest, uint64_t pfn);

/* A domain has so many pages more, or fewer. Returns false if it may not have them. */
bool adjust_pages(struct domain *domain, int64_t pages);

const struct operation *operation_of(const struct operation *table, size_t n, unsigned int number);
#define OPERATION(table, number) operation_of(table, sizeof(table) / sizeof(*table), number)

#endif
