"""From raw rows of preference data to batches of token ids."""
