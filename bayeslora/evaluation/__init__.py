"""What is computed of a run's draws: predictions in one streamed pass, summaries, criteria."""
