"""Arms of an experiment at one size: gaps to dense paired by seed, and training dynamics."""
