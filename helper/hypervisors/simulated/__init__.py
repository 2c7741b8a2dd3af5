"""A host made of a directory, and guests made of processes."""
