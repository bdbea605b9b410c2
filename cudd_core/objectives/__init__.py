"""What synthesis minimises: one interface, and a file for each method that implements it."""
