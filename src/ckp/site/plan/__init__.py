"""What applying a site's file would change, and what each change interrupts."""
