"""OpenAI's Chat Completions as jobs of sailq: its requests, its responses and its errors, without HTTP."""
