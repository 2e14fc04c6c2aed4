"""The bad inputs of scripts/selfcheck.py: a table a class, what a case is (case.py), and how one is run (runner.py)."""
