"""Run directories: where everything of a run lies, which model it belongs to, and what of it may be trusted."""
