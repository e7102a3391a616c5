"""Where the irreducible loss is known: how often fits of it hold it, and what fitting it does to alpha."""
