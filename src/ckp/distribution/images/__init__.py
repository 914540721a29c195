"""Programs to OCI images, without a base image that is pulled."""
