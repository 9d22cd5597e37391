"""Pixels: decoding, masks, geometry, infotexts."""
