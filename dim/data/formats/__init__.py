"""Formats of stored sets, one per file."""
