"""The configuration: the shape of the file, and how it is loaded."""
