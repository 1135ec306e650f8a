"""Using a reward model: rewards of rows in every form, rankings, the best of several, probabilities."""
