"""Checks of a machine that submits jobs or runs them, one file per subject.

A check is a function that takes a `Plan` and returns a `Verdict`. No check changes anything on the machine or the
server. `checks.py` lists all checks. They import only what a producer's machine has, and none of a worker's packages.
"""
