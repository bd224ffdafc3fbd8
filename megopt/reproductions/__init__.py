"""One file per publication: published numbers beside computed ones."""
