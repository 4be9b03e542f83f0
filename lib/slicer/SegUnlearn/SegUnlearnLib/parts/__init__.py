"""The pieces of the panel; each is given the one thing that it shows."""
