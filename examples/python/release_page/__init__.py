"""Writes an HTML page of releases from a TOML file."""
