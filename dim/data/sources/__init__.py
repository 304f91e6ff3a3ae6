"""Sources of real data, one data set per file."""
