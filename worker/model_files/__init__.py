"""Finds models on disk and reads what a bmodel contains."""
