"""Batches: many clips through one client, to JSONL rows, a summary and a report page."""
