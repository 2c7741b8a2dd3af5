"""Starts, supervises and ends save helpers, and talks to them."""
