"""The figures: each a pure function from fitted tables to a matplotlib figure, all in one style."""
