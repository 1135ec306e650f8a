"""Training: the settings, and the trainer on top of transformers'."""
