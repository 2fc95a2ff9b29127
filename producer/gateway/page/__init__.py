"""The web page of a gateway with an archive: captions as they arrive, search, and each clip in large."""
