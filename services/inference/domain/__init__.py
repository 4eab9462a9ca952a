"""What is true of models and their versions, whatever serves them."""
