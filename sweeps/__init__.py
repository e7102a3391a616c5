"""What to run, where, and what has been run."""
