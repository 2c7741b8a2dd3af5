"""Judges a played run by what was seen of it alone."""
