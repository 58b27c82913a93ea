"""Tests in a real browser. A package, so that fixtures can last as long as this directory's tests and no longer."""
