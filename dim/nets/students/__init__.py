"""Students, one architecture per file."""
