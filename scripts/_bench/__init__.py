"""The rows of benchmark.py: what is measured, against what, and how. Nothing here imports torch before a row runs."""
