"""HTTP over the services: parsing, codes, and shapes. No decision is taken here."""
