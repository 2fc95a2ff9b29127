"""A job in a worker: it is claimed with a lease, run, and then finished, refused or handed back."""
