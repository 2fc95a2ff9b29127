"""A job's way through a worker: claimed with a lease, run, and finished, refused or handed back."""
