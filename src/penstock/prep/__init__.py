"""Make the water clean, once: sources into token bins."""
