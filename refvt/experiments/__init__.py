"""Small versions of the paper's tables and figures, on moving digits."""
