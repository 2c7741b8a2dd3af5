"""Evacuation of a host: all its guests, or some, moved to other hosts."""
