"""Simulations: how often intervals hold the truth, and tests reject equal exponents."""
