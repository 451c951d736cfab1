"""Sample to sample: tokenizers and collating."""
