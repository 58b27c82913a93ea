"""The running exporter: its accounts and open resources, and the change to a new configuration."""
