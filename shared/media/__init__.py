"""Images and clips from files to sized frames, with qwen-vl-utils' options and arithmetic."""
