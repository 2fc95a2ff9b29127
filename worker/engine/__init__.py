"""The model itself, in numpy over a runner: prompt, patches, positions, sampling and text."""
