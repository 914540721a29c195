"""The BYOH infrastructure provider: people's own hosts as Cluster API machines."""
