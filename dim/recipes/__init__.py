"""Recipes: one TOML file per setting worth running."""
