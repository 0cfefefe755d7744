"""Values sent between server and clients, and the algorithm interface. No files, no clock, no printing."""
