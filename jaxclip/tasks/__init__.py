"""What people do with the vectors."""
