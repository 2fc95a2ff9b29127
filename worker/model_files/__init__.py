"""Where models lie, which there are, and what a bmodel holds."""
