"""The life of a run on disk: configuration, session, checkpoint, trackers."""
