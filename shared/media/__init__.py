"""Reads images and clips into resized frames, with qwen-vl-utils' options and arithmetic."""
