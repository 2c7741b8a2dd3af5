/* hvm_op: a guest's parameters. */
#include "machine.h"

#include <errno.h>

#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>

_Static_assert(HVM_NR_PARAMS <= MAX_PARAMS, "struct domain has room for all of them");

static long get_param(struct guest *guest, void *argument, uint32_t short_by)
{
    struct xen_hvm_param *op = argument;

    if (op->index >= HVM_NR_PARAMS)
        return -EINVAL;
    op->value = guest->domain->params[op->index];
    return 0;
}

static long set_param(struct guest *guest, void *argument, uint32_t short_by)
{
    const struct xen_hvm_param *op = argument;

    if (op->index >= HVM_NR_PARAMS)
        return -EINVAL;
    guest->domain->params[op->index] = op->value;
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
