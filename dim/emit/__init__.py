"""Emission: which of a generator's images a set takes, and how their latents are refined."""
