"""Every picture that refvt draws."""
