"""The report: one HTML file of a sweep, self-contained, verdict first."""
