"""Parts of pages that are pushed to browsers when they change."""
