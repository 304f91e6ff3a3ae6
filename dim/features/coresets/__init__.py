"""Coreset rules, one per file."""
