"""The stored record of each space, in memory and in the state file."""
