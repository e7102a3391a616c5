"""Tests on a real Slurm of several nodes, started on this one machine."""
