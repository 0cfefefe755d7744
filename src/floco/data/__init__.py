"""From a user's files and arrays to a Federation: read, check, describe, split. Nothing here trains."""
