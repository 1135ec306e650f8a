"""Compares every way of running a reward model with its golden rows, and names the cause of a difference."""
