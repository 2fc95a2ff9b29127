"""The producer's subcommands, one per file. Each imports only typer until it runs, so that help is fast."""
