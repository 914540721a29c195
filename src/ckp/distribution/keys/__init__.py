"""The keys that sign packages and images."""
