"""One run: from a RunConfig to a run folder."""
