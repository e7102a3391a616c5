"""Do structures differ: nested fits, tests of exponents, multipliers, and the verdict."""
