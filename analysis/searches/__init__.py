"""What a search of shapes found: its trials, best shapes, parity of tuning, optimum widths and trade-offs."""
