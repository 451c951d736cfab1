"""Bytes by URL: the one place where requests are made, repeated, timed out and refused."""
