"""The save helper: one process, one save or one restore."""
