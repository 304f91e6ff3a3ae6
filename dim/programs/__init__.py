"""Formats of exported programs, one per file."""
