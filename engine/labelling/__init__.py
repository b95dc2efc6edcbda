"""Maps as regions and polygons, and how tools that people label with ask for them."""
