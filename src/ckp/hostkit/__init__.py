"""What everything that runs on a host stands on: Python 3.9 and its standard library."""
