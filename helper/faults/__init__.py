"""Fault injection in the save helper: a plan (`ipc_schema.faults.plan`) carried out from inside.

Nothing of it is imported where there is no plan.
"""
