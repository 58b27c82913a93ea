"""What the operator says: the file's shape, its reading, and the credentials it names."""
