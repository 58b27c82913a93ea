"""Tests in a real browser. A package, so that fixtures can have the scope of this directory."""
