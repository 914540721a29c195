"""The console: server-rendered pages over the use cases. Pages in `pages`, what they show live in `live`, what they send in `forms`."""
