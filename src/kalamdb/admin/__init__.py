"""What is done to a data directory from outside: verification, backup, restore."""
