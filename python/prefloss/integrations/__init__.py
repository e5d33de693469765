"""prefloss for use inside other packages, one module for each. If a package is missing, the ImportError says what to install."""
