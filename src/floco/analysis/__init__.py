"""What finished runs say together: comparison, tuning, tables, landscape, report. Nothing here trains but through runs."""
