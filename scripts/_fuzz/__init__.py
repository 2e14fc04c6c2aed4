"""What scripts/fuzz.py gives to each parser."""
