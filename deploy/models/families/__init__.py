"""Model families: the vision towers that are exported, one module for each family."""
