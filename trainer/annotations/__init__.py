"""Labels as the tools that people label with read them."""
