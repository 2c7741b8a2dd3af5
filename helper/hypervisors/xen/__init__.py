"""Xen itself: its libraries through ctypes. Nothing is loaded before it is asked for."""
