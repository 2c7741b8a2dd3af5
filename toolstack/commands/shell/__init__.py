"""Completion scripts and man pages of both programs, which are made when the package is built."""
