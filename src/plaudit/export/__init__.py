"""Writes a reward model as a folder that any server reads: merged, scaled, and checked before it gets its name."""
