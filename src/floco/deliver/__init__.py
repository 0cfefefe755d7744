"""Models to take away: personal, best mixture, newcomers, drift, export, cards. Nothing here changes a run."""
