"""Bytes on disk: files written in one step, tables, and what clients keep between rounds. No algorithm, no configuration."""
