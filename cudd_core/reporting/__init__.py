"""Figures, tables and the page of results. Drawing libraries are imported only when something is drawn."""
