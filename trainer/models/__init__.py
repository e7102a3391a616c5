"""The networks; importing this package loads no torch."""
