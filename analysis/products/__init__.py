"""What is drawn and written from tracked tables: which figure comes from which tables, and its record."""
