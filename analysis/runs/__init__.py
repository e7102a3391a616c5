"""The table of runs: found, read, checked, and its curves named."""
