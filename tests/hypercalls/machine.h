/* A machine without a hypervisor: the state that the stand-ins of Xen's libraries share.
 *
 * A machine is a directory, named by HYPERCALLS_MACHINE. All processes map its files:
 *   machine      struct machine: what was asked for how often, what is to fail, what is still held
 *   domain-N     struct domain, then one byte a pfn of its kind, then one byte a pfn: dirty
 *   memory-N     the guest's memory: the page of a pfn is at pfn * 4096
 *   grants-N     the first page of its grant table
 * tests/hypercalls/machine.py makes them; its structures are checked against these by build.py.
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

/* What stands at a pfn. */
enum kind {
    HOLE,       /* nothing: XTAB, cannot be mapped */
    RAM,
    SPECIAL,    /* Xen's own page, as shared_info is: XTAB, but can be mapped */
    PAGED_OUT,  /* XTAB; mapping it says ENOENT */
    BROKEN,     /* its own type; cannot be mapped */
    UNMAPPABLE, /* RAM that cannot be mapped: EFAULT */
};

/* One kind of hypercall or library call, by name. Its calls number fail_from to fail_to (from 1)
 * fail with fail_errno, or are told to do less by short_by. */
struct tally {
    char name[56];
    uint64_t count;
    uint64_t fail_from;
    uint64_t fail_to;
    int32_t fail_errno;
    uint32_t short_by;
    uint32_t unknown; /* nobody knows how to answer it */
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
    uint32_t lock;          /* of adding a tally */
    uint32_t version;       /* Xen's: major << 16 | minor */
    uint32_t nr_leaves;     /* of the system's CPU policies, all alike */
    uint32_t nr_msrs;
    uint32_t copies;        /* scattered pages that are mapped to be read are copied */
    int64_t buffers_held;   /* hypercall buffers that are allocated now */
    int64_t handles_open;   /* of libraries, now */
    int64_t mappings_left;  /* of guests' memory, when a process had closed its last handle */
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
    uint64_t repopulated;   /* pages that took the place of another */
    uint32_t flags;         /* XEN_DOMINF_* */
    uint32_t log_dirty;
    uint32_t garbage;       /* fresh pages are full of it */
    uint32_t tsc_mode;
    uint32_t tsc_khz;
    uint32_t tsc_incarnation;
    uint64_t tsc_nsec;
    uint64_t params[MAX_PARAMS];
    uint64_t extents[MAX_ORDER]; /* that were populated, by order */
    uint32_t context_bytes;
    uint32_t nr_leaves;
    uint32_t nr_msrs;
    uint32_t started;       /* it has run: its CPU policy is what it is */
    struct leaf leaves[MAX_LEAVES];
    struct msr msrs[MAX_MSRS];
    uint8_t context[MAX_CONTEXT];
};

/* A domain as this process has it. */
struct guest {
    struct guest *next;
    domid_t domid;
    struct domain *domain;
    uint8_t *kinds;
    uint8_t *dirty;
    int memory_fd;
    int grants_fd;
    uint8_t *memory;        /* all of it, or NULL until it is asked for */
    size_t state_bytes;
};

extern struct machine *machine;

/* The machine's files are there from the first handle to the last. Returns false with errno. */
bool machine_get(void);
void machine_put(void);

/* Areas of copied pages that this process has now (foreignmemory.c). */
extern unsigned int copied_areas;

/* A file without contents: what is mapped from it is SIGBUS. */
int void_fd(void);

/* NULL if there is no such domain. */
struct guest *guest_of(uint32_t domid);
struct guest *guest_from(uint32_t domid); /* it, or the next */
uint8_t *guest_memory(struct guest *guest); /* NULL with errno */

/* Counts a call. Returns the errno it is to fail with, or 0; then `short_by` may say how much less
 * it is to do. */
int tally(const char *name, uint32_t *short_by);

/* Counts a call that nobody knows, and says so on stderr. Returns ENOSYS. */
int refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether these bytes are in a living hypercall buffer; if not, it is said on stderr. A privcmd that
 * was handed other memory might find it paged out: EFAULT, sometimes. */
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

const struct operation *operation_of(const struct operation *table, size_t n, unsigned int number);
#define OPERATION(table, number) operation_of(table, sizeof(table) / sizeof(*table), number)

#endif
