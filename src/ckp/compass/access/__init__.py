"""Who calls, for which project, and how often."""
