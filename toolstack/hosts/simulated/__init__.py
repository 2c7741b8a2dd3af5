"""Hosts that are directories, whose guests are processes."""
