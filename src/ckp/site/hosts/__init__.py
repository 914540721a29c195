"""What is done on any host of a site: files, settings, this machine as a host, and several hosts at the same time."""
