"""One client's work: setup, round, SGD and predictions. Nothing here knows of other clients."""
