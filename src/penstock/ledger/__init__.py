"""Who works on which chunk, and what is done: claims that expire, completions that are recorded once."""
