"""Where clients' work runs, and how much of it at once: one process, several, or several clients as one program. No algorithm is known here."""
