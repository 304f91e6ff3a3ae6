"""Purposes of refinement, one per file."""
