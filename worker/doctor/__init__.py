"""The checks of `sailq doctor` for a machine that runs jobs, one file per subject. `checks.py` lists them.

They import only what every installation has, so that they can tell which of a worker's packages are missing.
"""
