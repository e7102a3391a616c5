"""IsoFLOP curves: budgets, parabolas, optima, their exponents over budgets; envelopes of training curves."""
