/* hvm_op: a guest's parameters. */
#include "machine.h"

#include <errno.h>

#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>

_Static_assert(HVM_NR_PARAMS <= MAX_PARAMS, "struct domain has room for all of them");

/* Whether Xen no longer has this parameter. */
static bool deprecated(uint32_t index)
{
    switch (index) {
    case HVM_PARAM_PAE_ENABLED:
    case HVM_PARAM_DM_DOMAIN:
    case HVM_PARAM_NESTEDHVM:
    case HVM_PARAM_BUFIOREQ_EVTCHN:
    case HVM_PARAM_MEMORY_EVENT_CR0:
    case HVM_PARAM_MEMORY_EVENT_CR3:
    case HVM_PARAM_MEMORY_EVENT_CR4:
    case HVM_PARAM_MEMORY_EVENT_INT3:
    case HVM_PARAM_MEMORY_EVENT_SINGLE_STEP:
    case HVM_PARAM_MEMORY_EVENT_MSR:
        return true;
    default:
        return index >= HVM_NR_PARAMS;
    }
}

static bool set_once(uint32_t index)
{
    return index == HVM_PARAM_VIRIDIAN || index == HVM_PARAM_IOREQ_PFN ||
           index == HVM_PARAM_BUFIOREQ_PFN || index == HVM_PARAM_IOREQ_SERVER_PFN ||
           index == HVM_PARAM_NR_IOREQ_SERVER_PAGES || index == HVM_PARAM_ALTP2M ||
           index == HVM_PARAM_MCA_CAP;
}

static long get_param(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_hvm_param *op = argument;

    if (deprecated(op->index))
        return -EINVAL;
    op->value = guest->domain->params[op->index];
    return 0;
}

static long set_param(struct guest *guest, void *argument, uint32_t short_by)
{
    const struct xen_hvm_param *op = argument;

    if (deprecated(op->index))
        return -EINVAL;
    uint64_t *value = &guest->domain->params[op->index];
    if (set_once(op->index) && *value && *value != op->value)
        return -EEXIST;
    *value = op->value;
    return 0;
}

#define ANSWERED_BY(number, answer) {number, #number, answer}

static const struct operation operations[] = {
    ANSWERED_BY(HVMOP_get_param, get_param),
    ANSWERED_BY(HVMOP_set_param, set_param),
};

long do_hvm_op(unsigned int command, void *argument)
{
    const struct operation *known = OPERATION(operations, command);
    uint32_t short_by;

    if (!known)
        return -refuse("hvm_op %u", command);
    int error = tally(known->name, &short_by);
    if (error)
        return -error;
    if (!in_buffer(argument, sizeof(struct xen_hvm_param), known->name))
        return -EFAULT;
    struct guest *guest = guest_of(((struct xen_hvm_param *)argument)->domid);
    return guest ? known->answer(guest, argument, short_by) : -ESRCH;
}
