"""What browsers send, and what people can take along: forms, YAML, command lines."""
