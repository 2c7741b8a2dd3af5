"""libxl's rules as state machines without I/O: an event goes in, actions come out."""
