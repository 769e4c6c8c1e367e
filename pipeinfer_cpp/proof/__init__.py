"""Does a model compute the same in slices? Its own metadata with small widths and random weights tell, in a
second and without reading its weights. Start with `prove.prove`."""
