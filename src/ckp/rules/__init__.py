"""Pure decisions: no input or output, no clock of their own. State goes in, a decision comes out."""
