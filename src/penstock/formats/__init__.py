"""Bytes and records: how text sources and token bins lie on disk."""
