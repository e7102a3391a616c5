"""Before a sweep: how precisely a grid of runs will fix the exponents, and which runs to add."""
