"""The running exporter: what it holds open, and the step to another configuration."""
