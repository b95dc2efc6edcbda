"""Maps and labels against ground truth."""
