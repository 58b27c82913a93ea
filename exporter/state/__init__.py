"""What is known of every space and account."""
