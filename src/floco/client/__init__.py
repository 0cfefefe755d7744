"""One client's work: its setup, its round, its SGD, its predictions. Nothing here knows of other clients."""
