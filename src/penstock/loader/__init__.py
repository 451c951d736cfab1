"""Carry the plan out: fetch, transform, collate and hand over batches, deciding nothing."""
