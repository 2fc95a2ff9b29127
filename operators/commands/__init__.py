"""The operators' subcommands of `sailq`, one per file."""
