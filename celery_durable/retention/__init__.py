"""What may be forgotten, and forgetting it."""
