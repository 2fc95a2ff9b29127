"""What producers and workers agree on: job and result types, codec, Redis keys, settings, errors."""
