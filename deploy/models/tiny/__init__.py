"""How sailq-tiny was trained."""
