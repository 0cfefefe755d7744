"""Files on disk: atomic writes, tables, and clients' memories between rounds. No algorithm, no configuration."""
