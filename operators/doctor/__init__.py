"""`sailq doctor`: the checks of the server, and how it collects, runs and shows all checks."""
