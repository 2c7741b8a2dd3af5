"""Faults to inject: the points they fire at, what they do, and the plans that name both."""
