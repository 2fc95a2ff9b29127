"""Model families: the interface that the rest of the worker uses, and one module for each family."""
