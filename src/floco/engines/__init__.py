"""Where clients' work runs: one process, several, or several clients as one program. No algorithm is known here."""
