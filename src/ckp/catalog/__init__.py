"""The releases and source locks as data: read from `catalog/`, checked, and never changed by a build."""
