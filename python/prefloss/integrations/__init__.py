"""prefloss inside other packages. Each module here needs the package it is named after, and says so where that is missing."""
