"""Pictures, tables and the page of results. Drawing libraries are imported when something is drawn."""
