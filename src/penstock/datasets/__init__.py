"""Samples by id."""
