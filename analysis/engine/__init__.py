"""The optimiser of all laws: sums of power terms bound to a table, starts, and batched Newton."""
