"""Comparison, tuning, tables, landscape and report: analysis of finished runs; training itself is in `runs`."""
