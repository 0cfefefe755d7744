"""The loop: rounds, aggregation and evaluation. It does no I/O and knows no algorithm by name."""
