"""Parts of the report: grids of images, curves, the accuracy figure, the page. Callers use `cudd_core.report`."""
