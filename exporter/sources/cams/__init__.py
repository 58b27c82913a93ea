"""What the API is: its values, its errors, its signature, its bytes and one request."""
