"""Serving a reward model over HTTP: the same rewards as `RewardModel.score`, with requests computed together."""
