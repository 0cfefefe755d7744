"""The loop: rounds, aggregation, evaluation. It reads no file and knows no algorithm by name."""
