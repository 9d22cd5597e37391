"""The model library: catalog, recognition of files, pulling from a hub, adding and removing."""
