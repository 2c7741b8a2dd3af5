"""Streams taken apart for people."""
