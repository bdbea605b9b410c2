"""The objectives of synthesis: one interface, and a file for each method that implements it."""
