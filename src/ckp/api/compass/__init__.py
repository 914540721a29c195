"""Compass' requests and views, by subject. The services take and return them, REST writes them as JSON, the command line reads them."""
