"""An existing cluster that CKP installs only its own layer onto: reaching it, judging it, and taking away what was brought."""
