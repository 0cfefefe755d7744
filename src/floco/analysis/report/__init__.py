"""The report: one self-contained HTML page, written by `sections.write`."""
