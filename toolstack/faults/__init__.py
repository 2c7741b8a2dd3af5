"""Faults provoked and judged: a run on simulated hosts, and the oracle that says what is right."""
