"""Code that producers and workers share: job and result types, codec, Redis keys, settings, errors."""
