"""Code that producers, workers and operators share: job and result types, codec, Redis keys, settings, errors."""
