"""Where phone numbers come from."""
