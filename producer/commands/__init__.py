"""The producer's subcommands, one a file. Each imports only typer until it runs, so that help is quick."""
