"""Runners: the only code that knows a runtime. The engine drives them through `base.Runner`."""
