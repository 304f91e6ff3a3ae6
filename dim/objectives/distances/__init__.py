"""Distances between a pool's outputs for real and for generated images, one per file."""
