"""Tools that know nothing of the domain: errors, processes, steps with progress, retries, clock, files, paths."""
