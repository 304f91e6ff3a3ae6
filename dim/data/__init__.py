"""Data: real sources, synthetic sets, loaders, and files of sets."""
