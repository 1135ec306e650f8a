"""The reward model: loading, the head that scores, and attention for the shared-prefix layout."""
