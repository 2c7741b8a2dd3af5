"""Simulated hosts: directories, whose guests are processes."""
