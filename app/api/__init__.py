"""The HTTP face: routes derived from the catalog, jobs, images, models, and the checks before them."""
