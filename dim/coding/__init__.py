"""Coded files (`.dimz`): a generator or a set in as few bytes as its accuracy allows. `dim.budget` chooses what one holds."""
