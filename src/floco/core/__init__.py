"""What travels between server and clients, and what an algorithm is. No files, no clock, no printing."""
