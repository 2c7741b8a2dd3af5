"""Fault injection in the save helper: a plan (`ipc_schema.faults.plan`) carried out from inside.

Nothing in it is imported without a plan.
"""
