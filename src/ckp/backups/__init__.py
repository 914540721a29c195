"""Backups: the archive, its proof and where it is kept, for sites and workload clusters; and the program that makes and restores those of clusters."""
