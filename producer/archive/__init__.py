"""Keeps the results of all jobs in an SQLite file, longer than the server does, and searches them."""
