"""The console over a whole Compass in memory."""
