"""Files as people download them -> dataset folders: one file per family of layout, and what they share."""
