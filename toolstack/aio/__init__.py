"""Descriptors, files and threads under asyncio."""
