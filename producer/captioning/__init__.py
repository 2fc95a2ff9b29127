"""Captions batches of clips through one client, and writes JSONL rows, a summary and a report page."""
