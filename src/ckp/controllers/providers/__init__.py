"""Infrastructure providers of Cluster API, one folder each."""
