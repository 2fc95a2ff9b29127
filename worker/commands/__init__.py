"""The worker's subcommands of `sailq`, a file each."""
