"""What may be wrong with a machine that is to submit jobs or to run them, a file for each subject.

A check is a function of the `Plan` that gives a `Verdict`. None changes anything, here or on the server; all are
listed in `checks.py`. Nothing here needs a worker's own packages: a producer's machine has none of them.
"""
