"""Models that leave: personal, best mixture, newcomers, drift, export, cards. Nothing here changes a run."""
