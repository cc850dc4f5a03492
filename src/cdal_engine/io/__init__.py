"""Files in (images, slides) and results out (labels, maps, tables, outlines, overviews)."""
