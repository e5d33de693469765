"""prefloss inside other packages. A module that imports the package it is named after says so where that is missing."""
