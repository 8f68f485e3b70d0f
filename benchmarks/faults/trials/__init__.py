"""The trials: one module for each, found by its name."""
