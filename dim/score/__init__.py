"""Scores: what students learn from a set or a stream, what a generator covers, and how figures are compared and shown."""
