"""Measuring speed on this machine: layers, whole training steps, generation; importing it loads no torch."""
