"""What a backup of a site takes from a management host: the same code reads it for the machine with `site.yaml` and for the host tool."""
