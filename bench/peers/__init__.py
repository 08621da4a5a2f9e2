"""Side by side with others."""
