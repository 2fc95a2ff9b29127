"""Runners: the only code that calls a runtime. The engine uses them through `base.Runner`."""
