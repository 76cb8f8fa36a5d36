"""Importers of downloaded files to dataset folders: one module for each family of layouts, and shared helpers."""
