"""Searches: Optuna proposes shapes and settings, each trial is a run of the ledger."""
