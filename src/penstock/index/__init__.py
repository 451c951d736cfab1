"""What exists: one row a sample, from any source, mapped into memory, built once per node."""
