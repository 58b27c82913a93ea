"""The configuration: schema, loading and errors."""
