"""The life of a run: configuration, session, checkpoint, trackers, and its results as a Python value."""
