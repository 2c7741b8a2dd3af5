"""The hypervisors that a save works on: the interface, and the simulated one."""
