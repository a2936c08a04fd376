"""What the model writes, put to work: categories of a taxonomy, and feeds whose gaps are filled."""
