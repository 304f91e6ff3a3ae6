"""What students reach in a given time: `dim evaluate --student-seconds`."""
